"""Fits and forecasts of a table in memory, as `bigmodel.fit` and `bigmodel.forecast` offer them."""

import dataclasses
import logging
import math
import numbers as numbers_
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import arguments, choice, curves, fitting, forms, measured, optimum, reach, table, uncertainty, units
from bigmodel.laws import forecast as forecasts
from bigmodel.laws.facts import ForecastRow
from bigmodel.laws.law import Law
from bigmodel.laws.source import Source

log = logging.getLogger("bigmodel")
ARGUMENTS = ("loss", "stderr", "group")  # columns that are arguments and not scales
AUTO = "auto"
POINTS_OF_A_LINE = 50  # where the fitted curve is drawn


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a table hold what laws need. `scales` maps N, D, C, x, ... to columns; `''` means none."""

  scales: Mapping[str, str]
  loss: str
  stderr: str = ""
  group: str = ""


@dataclasses.dataclass(frozen=True)
class Forecast:
  """Forecast losses with intervals, and what is needed to draw them.

  `table` has a row for each scale that was asked about. `points` are the runs that were fitted, with the scale (`C` in
  FLOPs, or `x`) and the `loss`. `line` is the forecast along that scale, from the smallest point on: over N and D at
  the best N and D of each budget. `weights` are those of the laws, over N and D with groups their means over groups.
  """

  table: pl.DataFrame
  points: pl.DataFrame
  line: pl.DataFrame
  weights: dict[str, float]

  @property
  def scale(self) -> str:
    """The scale of the horizontal axis: `C` or `x`."""
    return "x" if "x" in self.table.columns else "C"


def fit(points: object, columns: Columns, law: str = "") -> fitting.Fit:
  """Fits one law to a table, with draws of its parameters; see `bigmodel.fit`."""
  if law == AUTO:
    raise UserError("law: 'auto' is only for the command, bigmodel fit; give the name of a law")
  found = forms.find(law or ("power_offset" if "x" in columns.scales else "chinchilla"), "law")
  rows = _read(points, columns)
  source = _source(columns)
  values = table.columns(rows, "points", found.columns, dict(columns.scales))
  losses, weights = table.losses(rows, source)
  examined = choice.examine(source, found, rows)
  _log(examined.notes)
  kept = examined.kept
  how = fitting.Loss("squares", 1.0) if found.plain else fitting.Loss()
  scales = [values[name][kept] for name in found.columns]
  of_kept = None if weights is None else weights[kept]
  return uncertainty.bootstrap(fitting.fit(found, scales, losses[kept], of_kept, how))


def forecast(
  points: object, columns: Columns, at: Sequence[float | tuple[float, float]], laws: Sequence[str] = ()
) -> Forecast:
  """Forecasts losses from a table; see `bigmodel.forecast`."""
  if isinstance(laws, str):
    raise UserError(f"laws: {laws!r} is one text; give a list, [{laws!r}]")
  if AUTO in laws:
    raise UserError("laws: 'auto' is only for the command, bigmodel forecast; give names of laws, or none")
  _require_usual(columns.scales)
  if isinstance(at, Sequence | np.ndarray) and not len(at):
    raise UserError("at: is empty; it is the scales to forecast")
  if not isinstance(at, Sequence | np.ndarray) or isinstance(at, str):
    raise UserError(f"at: {at!r} is not a list of scales to forecast, such as [1e21, (1e9, 2e10)]")
  for where in at:
    numbers = where if isinstance(where, tuple) else (where,)
    are_positive = all(isinstance(number, numbers_.Real) and 0 < number < math.inf for number in numbers)
    if len(numbers) > 2 or not are_positive:
      raise UserError(f"at: {where!r} is not a positive number or a pair (N, D) of positive numbers")
  rows = _read(points, columns)
  if "x" not in columns.scales:
    return _forecast_surface(rows, columns, at, laws)
  if laws:
    raise UserError("laws: are for N and D, not for x")
  return _forecast_curves(rows, columns, at)


def _require_usual(scales: Mapping[str, str]) -> None:
  """Raises `UserError` for quantities with which only the command forecasts."""
  if further := [name for name in scales if name not in ("N", "D", "C", "x", *ARGUMENTS)]:
    raise UserError(
      f"columns: {further[0]!r} is not one of N, D, C and x; forecasts by laws of further columns are only for the"
      " command, bigmodel forecast"
    )


def _forecast_surface(
  rows: pl.DataFrame, columns: Columns, at: Sequence[float | tuple[float, float]], laws: Sequence[str]
) -> Forecast:
  """The forecasts of each group by its own forecaster; groups to which laws cannot be fitted are left out with a note.

  The weights of laws are means over groups.
  """
  used = forecasts.find_laws(laws, "laws")
  made: dict[str, Forecast] = {}
  unfit: list[UserError] = []
  for name, part in table.groups(rows, "points", columns.group).items():
    try:
      made[name] = _forecast_runs(name, measured.runs_of_table(part, _source(columns)), at, used)
    except UserError as error:
      unfit.append(UserError(f"{name}: {error}" if name else str(error)))
  if not made:
    raise unfit[0]
  _log([f"{error}; this group is left out" for error in unfit])

  def joined(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    named = [frame.select(pl.lit(name).alias("group"), pl.all()) for name, frame in frames.items()]
    return pl.concat(named) if columns.group else pl.concat(frames.values())

  weights = [each.weights for each in made.values()]
  return Forecast(
    table=joined({name: each.table for name, each in made.items()}),
    points=joined({name: each.points for name, each in made.items()}),
    line=joined({name: each.line for name, each in made.items()}),
    weights={law: math.fsum(each[law] for each in weights) / len(weights) for law in weights[0]},
  )


def _forecast_runs(
  name: str, runs: measured.MeasuredRuns, at: Sequence[float | tuple[float, float]], laws: Sequence[Law]
) -> Forecast:
  """The forecasts from the runs of one group; `name` begins notes, unless it is empty."""
  points, notes = runs.points, list(runs.notes)
  for where in at:
    if isinstance(where, tuple):
      notes += runs.check_size(f"at={where}", where[0], where[1], force=True)
    else:
      notes += runs.check_budget(f"at={where:g}", where, force=True)
  _log([f"{name}: {note}" if name else note for note in notes])
  forecaster = forecasts.fit(points, laws)
  per_nd = forecaster.points.flops_per_nd

  def scale_of(where: float | tuple[float, float]) -> forecasts.Scale:
    if isinstance(where, tuple):
      return forecasts.Scale(*where, per_nd * where[0] * where[1])
    size = optimum.best(forecaster, where)
    return forecasts.Scale(size.N, size.D, per_nd * size.N * size.D)

  asked = [scale_of(where) for where in at]
  budgets = np.geomspace(points.C.min(), max(points.C.max(), *(place.C for place in asked)), POINTS_OF_A_LINE)
  along = [scale_of(float(C)) for C in budgets]
  predicted = table_of(forecasts.rows([*asked, *along], forecaster.predict), ("N", "D", "C"))
  shown = pl.DataFrame({"C": points.C, "loss": points.loss})
  beyond = [reach.times(scale.N * scale.D, points.N * points.D) for scale in asked]
  of_asked = predicted[: len(asked)].with_columns(pl.Series("beyond", beyond))
  return Forecast(of_asked, shown, predicted[len(asked) :], forecaster.method().weights)


def _forecast_curves(rows: pl.DataFrame, columns: Columns, at: Sequence[float | tuple[float, float]]) -> Forecast:
  asked = [float(x) for x in at if not isinstance(x, tuple)]
  if len(asked) < len(at):
    raise UserError("at: a pair is for N and D; over x it is one number")
  read = measured.curves_of_table(rows, _source(columns))
  data = read.data
  _log(read.notes)
  for name in data:
    _log([note for x in asked for note in read.check(f"at={x:g}", name, x, True)])
  keys = ("group", "x") if columns.group else ("x",)
  ends = {name: (x.min(), max(x.max(), *asked)) for name, (x, _) in data.items()}
  places = [(name, x) for name in data for x in asked]
  along = [(name, float(x)) for name in data for x in np.geomspace(*ends[name], POINTS_OF_A_LINE)]
  predicted = table_of(curves.rows(data, places + along), keys)
  shown = pl.concat(
    pl.DataFrame({"group": name, "x": x, "loss": loss}).select(*keys, "loss") for name, (x, loss) in data.items()
  )
  beyond = [reach.times(x, data[name][0]) for name, x in places]
  of_asked = predicted[: len(places)].with_columns(pl.Series("beyond", beyond))
  return Forecast(of_asked, shown, predicted[len(places) :], curves.method().weights)


def table_of(rows: Sequence[ForecastRow], keys: Sequence[str]) -> pl.DataFrame:
  """Forecast rows with the ends of each interval in columns of their own, such as `low90` and `high90`."""
  table_ = pl.DataFrame(msgspec.to_builtins(rows))
  intervals = [name for name in table_.columns if name.startswith("interval")]
  ends = [
    pl.col(name).list.get(i).alias(name.replace("interval", end))
    for name in intervals
    for i, end in enumerate(("low", "high"))
  ]
  return table_.select(*keys, "predicted", *ends)


def _read(points: object, columns: Columns) -> pl.DataFrame:
  """The table with numbered rows. Raises `UserError` that names the first column it does not have."""
  source = _source(columns)
  if wrong := [name for name in columns.scales if name in ARGUMENTS]:
    name, column = wrong[0], columns.scales[wrong[0]]
    where = " of bigmodel.forecast; bigmodel.fit takes the rows of one group" if name == "group" else ""
    raise UserError(f"columns: {name!r} is not a scale of laws, but an argument{where}: {name}={column!r}")
  if isinstance(points, str | Path):
    runs = table.read(dataclasses.replace(source, path=str(points)))
  elif isinstance(points, pl.DataFrame):
    runs = table.checked(table.Runs(points.with_row_index(table.ROW), []), source)
  elif isinstance(points, Mapping):
    try:
      frame = pl.DataFrame(dict(points)).with_row_index(table.ROW)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
      raise UserError(f"points: not a table of columns of one length ({str(error).splitlines()[0]})") from error
    runs = table.checked(table.Runs(frame, []), source)
  else:
    raise UserError(
      f"points: a {type(points).__name__} is not a polars DataFrame, columns by name, or the path of a CSV"
    )
  wanted = {**columns.scales, "loss": columns.loss, "stderr": columns.stderr, "group": columns.group}
  have = table.names(runs.frame)
  for quantity, name in wanted.items():
    if name and units.parse(name, have).name not in have:
      raise UserError(f"points: no column {name!r} for {quantity}{nearest(name, have)}; it has {', '.join(have)}")
  frame, repeats = measured.without_repeats(runs.frame, source)
  _log([*runs.notes, *repeats])
  return frame


def _source(columns: Columns) -> Source:
  return Source("points", dict(columns.scales), columns.loss, columns.stderr, columns.group)


def _log(notes: Sequence[str]) -> None:
  for note in notes:
    log.warning("points: %s", arguments.in_python(note))
