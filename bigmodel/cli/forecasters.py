"""Fits the forecaster to the runs of a CSV or of a study, for the verbs `forecast` and `design`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel.cli.console import Output

if TYPE_CHECKING:
  from bigmodel.laws.chinchilla import Fit
  from bigmodel.laws.forecast import Forecaster
  from bigmodel.laws.measured import MeasuredRuns


def fit(runs: "MeasuredRuns", laws: Sequence[str], output: Output) -> tuple["Forecaster", "Fit"]:
  """Fits a forecaster with the named laws (by default three), and Chinchilla's law, to the same points."""
  from bigmodel.laws import chinchilla, forecast

  forecaster = forecast.fit(runs.points, forecast.find_laws(laws, "--law"))
  if not forecaster.spread.origins:
    output.say(
      "note: too few points below half of the largest C to weight laws and to measure how errors grow with distance:"
      f" laws have equal weights, and errors are assumed to grow by {forecast.DISCREPANCY:.0%} for each unit of ln C"
    )
  fitted = next((fit for fit in forecaster.fits if fit.law is chinchilla.LAW), None)
  # The forecaster sorts its points, so that the order of rows does not matter.
  points = forecaster.points
  return forecaster, chinchilla.Fit(points, fitted) if fitted else chinchilla.fit(points)
