"""Fits the forecaster to the runs of a CSV, for the verbs `forecast` and `design`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel.cli.console import Output

if TYPE_CHECKING:
  from bigmodel.laws.chinchilla import Fit
  from bigmodel.laws.forecast import Forecaster
  from bigmodel.laws.source import Source


def fit(source: "Source", laws: Sequence[str], output: Output) -> tuple["Forecaster", "Fit"]:
  """Fits a forecaster with the named laws (by default three), and Chinchilla's law, to the same points."""
  from bigmodel.laws import chinchilla, forecast, points

  runs = points.from_csv(source)
  output.notes(f"note: {note}" for note in runs.notes)
  forecaster = forecast.fit(runs, forecast.find_laws(laws, "--law"))
  if not forecaster.spread.origins:
    output.say(
      "note: too few points below half of the largest C to weight laws and to measure how errors grow with distance:"
      f" laws have equal weights, and errors are assumed to grow by {forecast.DISCREPANCY:.0%} for each unit of ln C"
    )
  fitted = next((fit for fit in forecaster.fits if fit.law is chinchilla.LAW), None)
  return forecaster, chinchilla.Fit(runs, fitted) if fitted else chinchilla.fit(runs)
