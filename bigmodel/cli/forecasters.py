"""What `forecast` and `design` share: the forecaster of the runs of a CSV."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel.cli.console import Output

if TYPE_CHECKING:
  from bigmodel.laws.chinchilla import Fit
  from bigmodel.laws.forecast import Forecaster
  from bigmodel.laws.source import Source


def fit(source: "Source", laws: Sequence[str], output: Output) -> tuple["Forecaster", "Fit"]:
  """The forecaster of the named laws (the usual ones if there are none), and Chinchilla's law of the same points."""
  from bigmodel.laws import chinchilla, forecast, points

  runs = points.from_csv(source)
  forecaster = forecast.fit(runs, forecast.find_laws(laws, "--law"))
  if not forecaster.spread.origins:
    output.say(
      "note: too few points below half of the largest C to weigh the laws and to measure how errors grow with distance:"
      f" laws weigh the same, and errors are taken to grow by {forecast.DISCREPANCY:.0%} for each unit of ln C"
    )
  fitted = next((fit for fit in forecaster.fits if fit.law is chinchilla.LAW), None)
  return forecaster, chinchilla.Fit(runs, fitted) if fitted else chinchilla.fit(runs)
