"""`--law=auto` for a table with any columns: reads it, tries all laws, and forecasts the rows of another table."""

import dataclasses
import fnmatch
from collections.abc import Mapping

import numpy as np
import polars as pl

from bigmodel.errors import UserError
from bigmodel.laws import automatic, measured, mixture_forms, table
from bigmodel.laws.automatic import Automatic
from bigmodel.laws.candidates import Data
from bigmodel.laws.facts import Choice, LawFit, Predicted, TableFits, TriedLaw, finite
from bigmodel.laws.source import Source
from bigmodel.readers import tables

SHARES = "r"  # the name under which several columns are given at once: r=a,b,c or r=train_*
NORMAL = 1.645  # half the width of a 90% interval, in standard deviations


def expanded(source: Source) -> Source:
  """The source with r=a,b,c, or r=pattern, as one column for each share: r1, r2, ..."""
  text = source.columns.get(SHARES, "")
  if not set(text) & set(",*?"):
    return source
  there = tables.read(source.path, missing=(), with_dates=False, skip_bad_rows=source.skip_bad_rows).frame.columns
  chosen: list[str] = []
  for part in text.split(","):
    found = [name for name in there if fnmatch.fnmatchcase(name, part)] if set(part) & set("*?") else []
    chosen += found or [part]
  if len(chosen) < mixture_forms.LEAST_SHARES:
    raise UserError(f"{source.path}: --column {SHARES}={text}: no two columns match; it has {', '.join(there)}")
  others = {name: column for name, column in source.columns.items() if name != SHARES}
  names = mixture_forms.shares(len(chosen))
  return dataclasses.replace(source, columns={**others, **dict(zip(names, chosen, strict=True))})


def fit(source: Source, places: str = "") -> TableFits:
  """Tries all laws of the given columns on each group; `places` is a table of runs to forecast, or empty.

  Errors in backtests are pooled over groups, so that all groups have the same weights. Raises `UserError` for points
  that cannot identify anything.
  """
  if not source.columns:
    raise UserError("--law=auto: name the columns, such as --n=COLUMN --d=COLUMN --column vocab=COLUMN, or --x=COLUMN")
  if source.stderr or source.drop_largest:
    raise UserError("--stderr, --drop-largest: --law=auto of these columns weighs all points equally")
  source = dataclasses.replace(expanded(source), signed=True)
  frame, warnings = measured.read(source)
  groups = {name: _data(rows, source) for name, rows in table.groups(frame, source.path, source.group).items()}
  groups, unfit = _usable(_on_one_scale(groups), list(source.columns))
  warnings += unfit
  at = _places(source, places, groups) if places else None
  shares = [name for name in source.columns if mixture_forms.is_share(name)]
  scales = [name for name in source.columns if name not in shares]
  derived = ["C"] if {"N", "D"} <= set(scales) and "C" not in scales else []
  chosen = automatic.fit(groups, scales, shares, at, derived)
  predicted = [
    row for name, columns in (at or {}).items() for row in _predicted(chosen, name, columns, scales + shares)
  ]
  return finite(TableFits(laws=_laws(chosen, groups), optimum=[], warnings=warnings, choice=facts(chosen, predicted)))


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
  half = NORMAL * chosen.error
  low, high = (center - half, center + half) if chosen.plain else (center * np.exp(-half), center * np.exp(half))
  return [
    Predicted(
      {name: float(columns[name][i]) for name in names}, float(center[i]), (float(low[i]), float(high[i])), group
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
