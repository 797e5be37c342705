"""Fits laws of the schedule to each of several groups of curves."""

from collections.abc import Sequence

from bigmodel.errors import UserError
from bigmodel.laws.schedules import forecast, laws
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.forecast import Forecaster
from bigmodel.laws.schedules.reading import CurveSets

AUTO = "auto"


def fit(names: str, sets: CurveSets, skip: bool) -> tuple[dict[str, Forecaster], list[str]]:
  """The forecaster of each group, by the laws `names` (separated by commas, `auto` or empty), and notes.

  With `skip`, groups that cannot be fitted are left out with a note. Raises `UserError` if none is left.
  """
  forecasters, problems = dict[str, Forecaster](), list[str]()
  for group, curves in sets.groups.items():
    try:
      forecasters[group] = _fit(names, curves, group)
    except UserError as error:
      if not skip or len(sets.groups) == 1:
        raise
      problems.append(str(error))
  of_curves = [
    f"group {group}: {note}" if group else note
    for group, each in forecasters.items()
    for note in forecast.outlying(each)
  ]
  if not forecasters:
    raise UserError(
      f"none of the {len(sets.groups)} groups of runs that differ only in schedule, length and seeds can be fitted,"
      f" such as {problems[0]}"
    )
  return forecasters, [*sets.notes, *(f"left out: {problem}" for problem in problems), *of_curves]


def _fit(names: str, curves: Sequence[Curve], group: str) -> Forecaster:
  try:
    if names == AUTO:
      return forecast.best(forecast.fit(curves, forecast.candidates(curves)))
    return forecast.fit(curves, laws.find(names.split(",") if names else (), "--law"))
  except UserError as error:
    raise UserError(f"group {group}: {error}" if group else str(error)) from error
