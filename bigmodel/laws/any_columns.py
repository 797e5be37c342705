"""`--law=auto` for a table with any columns: reads it, tries all laws, and forecasts the rows of another table."""

import dataclasses
import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
from msgspec import structs
from scipy import special

from bigmodel import files
from bigmodel.errors import UserError
from bigmodel.laws import automatic, forms, measured, mixture_forms, reach, table, units
from bigmodel.laws.automatic import Automatic
from bigmodel.laws.candidates import Columns, Data
from bigmodel.laws.facts import (
  Choice,
  ForecastMethod,
  ForecastRow,
  LawFit,
  Predicted,
  TableFits,
  TableForecast,
  TriedLaw,
  finite,
)
from bigmodel.laws.forecast import LEVELS
from bigmodel.laws.law import Law
from bigmodel.laws.source import Source
from bigmodel.readers import tables

SHARES = "r"  # the name under which several columns are given at once: r=a,b,c or r=train_*
NAME = "combination of laws of any columns"
VERSION = 2  # part of every seal; a change to how forecasts are made raises it
NORMAL = 1.645  # half the width of a 90% interval, in standard deviations


def expanded(source: Source) -> Source:
  """The source with r=a,b,c, r=pattern, or r=pattern/100, as one column for each share: r1, r2, ..."""
  text = source.columns.get(SHARES, "")
  if not set(text) & set(",*?"):
    return source
  there = tables.read(source.path, missing=(), with_dates=False, skip_bad_rows=source.skip_bad_rows).frame.columns
  chosen: list[str] = []
  for part in text.split(","):
    chosen += _matches(part, there) or [part]
  if len(chosen) < mixture_forms.LEAST_SHARES:
    raise UserError(f"{source.path}: --column {SHARES}={text}: no two columns match; it has {', '.join(there)}")
  others = {name: column for name, column in source.columns.items() if name != SHARES}
  names = mixture_forms.shares(len(chosen))
  return dataclasses.replace(source, columns={**others, **dict(zip(names, chosen, strict=True))})


def _matches(text: str, there: Sequence[str]) -> list[str]:
  """The columns that a pattern matches, each with the conversion that follows it, such as /100 of percent."""
  pattern, conversion = text, ""
  if not set(text) & set("*?"):
    return []
  if not fnmatch.filter(there, text) and (column := units.parse(text, there)).converted:
    pattern, conversion = column.name, text[len(column.name) :]
  return [name + conversion for name in there if fnmatch.fnmatchcase(name, pattern)]


def fit(source: Source, places: str = "") -> TableFits:
  """Tries all laws of the given columns on each group; `places` is a table of runs to forecast, or empty.

  Errors in backtests are pooled over groups, so that all groups have the same weights. Raises `UserError` for points
  that cannot identify anything.
  """
  read = _read(source)
  at = _places(read.source, places, read.groups) if places else None
  chosen = _combined(read, at)
  predicted = [row for name, columns in (at or {}).items() for row in _predicted(chosen, name, columns, read.names)]
  notes = [note for name, columns in (at or {}).items() for note in _notes(chosen, name, columns, "--predict", True)]
  warnings = [*read.notes, *dict.fromkeys(notes)]
  return finite(
    TableFits(laws=_laws(chosen, read.groups), optimum=[], warnings=warnings, choice=facts(chosen, predicted))
  )


@dataclasses.dataclass(frozen=True)
class Read:
  """The points of a table with any columns, by group; of `names` the last `shares` are shares of a mixture."""

  source: Source
  groups: dict[str, Data]
  names: list[str]
  shares: int
  notes: list[str]


def _read(source: Source) -> Read:
  if not source.columns:
    raise UserError("--law=auto: name the columns, such as --n=COLUMN --d=COLUMN --column vocab=COLUMN, or --x=COLUMN")
  if source.stderr or source.drop_largest:
    raise UserError("--stderr, --drop-largest: --law=auto of these columns weighs all points equally")
  source = dataclasses.replace(expanded(source), signed=True)
  frame, warnings = measured.read(source)
  groups = {name: _data(rows, source) for name, rows in table.groups(frame, source.path, source.group).items()}
  groups, unfit = _usable(_on_one_scale(groups), list(source.columns))
  shares = [name for name in source.columns if mixture_forms.is_share(name)]
  names = [name for name in source.columns if name not in shares] + shares
  return Read(source, groups, names, len(shares), warnings + unfit)


def _combined(read: Read, at: Mapping[str, Columns] | None, laws: Sequence[Law] = ()) -> Automatic:
  scales, shares = read.names[: len(read.names) - read.shares], read.names[len(read.names) - read.shares :]
  derived = ["C"] if {"N", "D"} <= set(scales) and "C" not in scales else []
  return automatic.fit(read.groups, scales, shares, at, derived, laws)


Place = tuple[str | None, Mapping[str, float]]  # (group, or None for all of them; values by column)


def forecast(source: Source, places: Sequence[Place], names: Sequence[str] = (), force: bool = False) -> TableForecast:
  """Forecasts of losses at places of any columns, by the laws of these `names` or by all that the columns allow.

  The interval follows from the errors of the combination in backtests; see `Automatic.deviation`.
  Raises `UserError` for laws of other columns, and for places too far beyond the points, unless `force`.
  """
  laws = [forms.find(name, "--law") for name in names]
  for law in laws:
    require_columns(law, source.columns)
  read = _read(source)
  at = {
    group: {name: np.array([values[name] for values in wanted]) for name in read.names}
    for group in read.groups
    if (wanted := [values for place, values in places if place in (None, group)])
  }
  if not at:
    raise UserError(f"--at: none of these groups is among the points; they have {', '.join(read.groups)}")
  for group, columns in at.items():
    _far(read.groups[group], columns, "--at", force)  # refused before anything is fitted
  chosen = _combined(read, {group: _with_compute(columns) for group, columns in at.items()}, laws)
  if chosen.plain:
    raise UserError("--loss: a forecast takes logs of losses, and some are 0 or negative; bigmodel fit forecasts them")
  rows = [row for group, columns in at.items() for row in _rows(chosen, group, columns)]
  notes = [note for group, columns in at.items() for note in _notes(chosen, group, columns, "--at", force)]
  return TableForecast(
    points=source.path,
    points_sha256=files.sha256_file(source.path),
    forecaster=ForecastMethod(NAME, VERSION, {each.name: each.weight for each in chosen.tried if each.weight}),
    rows=rows,
    warnings=list(dict.fromkeys([*read.notes, *notes])),
  )


def require_columns(law: Law, there: Collection[str]) -> None:
  """Raises `UserError` if a law has columns that are not given."""
  given = {*there, *({"N", "D", "C"} if len({"N", "D", "C"} & set(there)) == 2 else ())}
  if missing := [name for name in law.columns if name not in given]:
    options = " ".join(f"--{name.lower()}=COLUMN" if name in "NDCx" else f"--column {name}=COLUMN" for name in missing)
    raise UserError(f"--law: {law.name} needs {' and '.join(missing)}: add {options}, and the values in --at")


def _notes(chosen: Automatic, group: str, columns: Mapping[str, np.ndarray], asked: str, force: bool) -> list[str]:
  """Notes about places that lie far beyond the points, or beyond what backtests could test."""
  data = chosen.points[group]
  found = _far(data, columns, asked, force)
  for name in chosen.untested(columns, group):
    x, most = data.columns[name], float(columns[name].max())
    found.append(
      f"{f'{group}: ' if group else ''}{name} = {most:g} is {reach.sentence(most / x.max())}, and backtests could not"
      f" hide the largest {name} (the points have {len(np.unique(x))} values; that takes {automatic.LEAST_LEVELS}, and"
      f" half of the points below the largest): intervals grow by a fixed {automatic.BEYOND:.0%} for each unit of"
      f" ln {name}"
    )
  return found


def _far(data: Data, columns: Mapping[str, np.ndarray], asked: str, force: bool) -> list[str]:
  """Notes about places that lie far beyond the points in one of the scales or in compute; see `reach.check`."""
  scales = {name: values for name, values in _with_compute(columns).items() if not mixture_forms.is_share(name)}
  notes = []
  for place in zip(*scales.values(), strict=True):
    found = {
      name: reach.check(f"{asked} with {name} = {value:g}", name, float(value), data.columns[name], force)
      for name, value in zip(scales, place, strict=True)
    }
    if found.get("C"):  # which says more than N and D do
      found.pop("N", None)
      found.pop("D", None)
    notes += [note for each in found.values() for note in each]
  return notes


def _with_compute(columns: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """The columns with C = 6 N D, which laws may have, too."""
  return {**columns, "C": 6 * columns["N"] * columns["D"]} if {"N", "D"} <= set(columns) - {"C"} else columns


def beyond(at: Mapping[str, np.ndarray], points: Mapping[str, np.ndarray]) -> np.ndarray:
  """How far places lie beyond the points, as `reach.times`, in compute or in the column in which it is most."""
  scales = {name: values for name, values in _with_compute(at).items() if not mixture_forms.is_share(name)}
  if {"N", "D", "C"} <= set(scales):
    scales = {name: values for name, values in scales.items() if name not in ("N", "D")}
  count = len(next(iter(at.values())))
  factors = [[reach.times(float(value), points[name]) for value in values] for name, values in scales.items()]
  by_scale = np.array([*factors, [1.0] * count])
  return by_scale[np.abs(np.log(by_scale)).argmax(axis=0), np.arange(count)]


def _rows(chosen: Automatic, group: str, columns: Mapping[str, np.ndarray]) -> list[ForecastRow]:
  made = []
  there = _with_compute(columns)
  center, deviations = chosen.predict(there, group), chosen.deviation(there, group)
  times = beyond(columns, chosen.points[group].columns)
  for i, (predicted, deviation) in enumerate(zip(map(float, center), map(float, deviations), strict=True)):
    values = {name: float(x[i]) for name, x in columns.items()}
    usual = {name: values.pop(name) for name in ("N", "D", "C", "x") if name in values}
    ends: dict[str, tuple[float, float]] = {}
    for level in LEVELS:
      half = float(special.ndtri(0.5 + level / 2)) * deviation
      ends[f"interval{100 * level:.0f}"] = (predicted * math.exp(-half), predicted * math.exp(half))
    row = ForecastRow(group=group, predicted=predicted, columns=values, beyond=float(times[i]))
    made.append(structs.replace(row, **usual, **ends))
  return made


def facts(chosen: Automatic, predicted: list[Predicted]) -> Choice:
  """What was tried, for JSON and the screen."""
  return Choice(
    tried=[TriedLaw(each.name, each.error, dict(each.errors), each.weight) for each in chosen.tried],
    error=chosen.error,
    backtests=chosen.splits,
    plain=chosen.plain,
    left_out=list(chosen.left_out),
    predicted=predicted,
  )


def _columns(rows: pl.DataFrame, source: Source) -> dict[str, np.ndarray]:
  return table.columns(rows, source.path, (), source.columns)


def _data(rows: pl.DataFrame, source: Source) -> Data:
  return Data(_columns(rows, source), table.signed_column(rows, source.path, source.loss, "--loss"))


def _on_one_scale(groups: dict[str, Data]) -> dict[str, Data]:
  """The groups with shifts, if some loss is not positive: laws then fit losses that are two to three ranges large."""
  if all((data.loss > 0).all() for data in groups.values()):
    return groups

  def shift(loss: np.ndarray) -> float:
    return float(2 * np.ptp(loss) - loss.min())

  return {name: dataclasses.replace(data, shift=shift(data.loss)) for name, data in groups.items()}


def _usable(groups: Mapping[str, Data], columns: list[str]) -> tuple[dict[str, Data], list[str]]:
  """The groups that can be fitted, and why others cannot; raises `UserError` if none can."""
  usable: dict[str, Data] = {}
  unfit: list[str] = []
  for name, data in groups.items():
    try:
      automatic.check(name, data, columns)
      usable[name] = data
    except UserError as error:
      unfit.append(str(error))
  if not usable:
    raise UserError(unfit[0])
  return usable, unfit


def _places(source: Source, path: str, groups: Mapping[str, Data]) -> dict[str, dict[str, np.ndarray]]:
  """The columns of the table of places, by group."""
  first = next(iter(source.columns.values()))  # the table needs no losses: a column is read twice instead
  places = dataclasses.replace(source, path=path, loss=first, signed=False)
  parts = table.groups(table.read(places).frame, path, source.group)
  unknown = [name for name in parts if name not in groups]
  if unknown:
    raise UserError(f"{path}: no points of group {unknown[0]!r} in {source.path}; it has {', '.join(groups)}")
  return {name: _columns(rows, places) for name, rows in parts.items()}


def _predicted(chosen: Automatic, group: str, columns: Mapping[str, np.ndarray], names: list[str]) -> list[Predicted]:
  center = chosen.predict(columns, group)
  half = NORMAL * chosen.deviation(columns, group)
  low, high = (center - half, center + half) if chosen.plain else (center * np.exp(-half), center * np.exp(half))
  times = beyond({name: columns[name] for name in names}, chosen.points[group].columns)
  return [
    Predicted(
      {name: float(columns[name][i]) for name in names},
      float(center[i]),
      (float(low[i]), float(high[i])),
      group,
      float(times[i]),
    )
    for i in range(len(center))
  ]


def _laws(chosen: Automatic, groups: Mapping[str, Data]) -> list[LawFit]:
  """The parameters of laws with weight; of several groups those of the best law. Regressions have none."""
  first = next(iter(groups))
  laws = [each for each in chosen.tried if each.weight and each.fits[first].params]
  return [
    LawFit(name=each.name, params={**each.fits[group].params}, intervals={}, points=len(data), group=group)
    for group, data in groups.items()
    for each in (laws if len(groups) == 1 else laws[:1])
  ]
