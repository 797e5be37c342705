"""Fits the forecaster to the runs of a CSV or of a study, for the verbs `forecast` and `design`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.forecast import Forecaster
  from bigmodel.laws.measured import MeasuredRuns

Made = TypeVar("Made")


def fit(runs: "MeasuredRuns", laws: Sequence[str]) -> tuple["Forecaster", list[str]]:
  """Fits a forecaster with the named laws (by default three); returns it with notes on the runs and on itself."""
  import numpy as np

  from bigmodel.laws import forecast

  forecaster = forecast.fit(runs.points, forecast.find_laws(laws, "--law"))
  points = runs.points
  if not np.isfinite(forecaster.log_loss(points.N, points.D, points.C)).all():
    raise UserError("the laws together give no finite losses at the points; is one run far larger than all others?")
  notes = list(runs.notes)
  if not forecaster.spread.origins:
    notes.append(
      f"fewer than {forecast.FEWEST} points below half of the largest C, too few to forecast the others from: laws are"
      " weighed by their residuals"
    )
  return forecaster, notes


def each_group(
  groups: Mapping[str, "MeasuredRuns"], make: Callable[[str, "MeasuredRuns"], Made]
) -> tuple[dict[str, Made], list[str]]:
  """What `make` makes of each group, and notes on groups of which it cannot: of several, the others remain.

  Raises `UserError` if there is one group only, or if nothing can be made of any.
  """
  made: dict[str, Made] = {}
  unfit: list[UserError] = []
  for name, runs in groups.items():
    try:
      made[name] = make(name, runs)
    except UserError as error:
      unfit.append(UserError(f"{name}: {error}" if name else str(error)))
  if not made:
    raise unfit[0]
  return made, [f"{error}; this group is left out" for error in unfit]
