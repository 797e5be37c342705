"""Fits several laws to each group of a table; those that forecast best come first."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from msgspec import UNSET, structs

from bigmodel.errors import UserError
from bigmodel.laws import measured, notes, summary, table, units
from bigmodel.laws.facts import LawFit, TableFits
from bigmodel.laws.forms import LAWS, Law
from bigmodel.laws.source import Source

CURVES = ("power", "power_offset", "power_shifted", "bnsl1")  # laws of one scale x
SURFACES = ("chinchilla", "kaplan_nd", "overtraining")  # laws of N and D
USUAL = ({"x"}, {"N", "D"}, {"N", "C"}, {"C", "D"}, {"N", "D", "C"})  # columns of these laws


def usual_laws(source: Source) -> list[Law]:
  """The laws that are tried if the user names none."""
  return [LAWS[name] for name in (CURVES if "x" in source.columns else SURFACES)]


def fit(source: Source, laws: Sequence[Law], skip_unfit: bool = False) -> TableFits:
  """Fits every law to every group; within a group they are in the order of their errors on hidden points.

  Points of the largest scales are hidden for that (`summary.backtest`). With `skip_unfit`, or if there are several
  groups, laws that cannot be fitted to a group become warnings; otherwise the first of them raises `UserError`, as it
  does if no law can be fitted to any group.
  """
  ranked: list[LawFit] = []
  unfit: list[str] = []
  read, warnings = measured.read(source)
  groups = table.groups(read, source.path, source.group)
  warnings += notes.similar_names(groups)
  for law in () if skip_unfit else laws:
    table.columns(read, source.path, law.columns, source.columns)
  for group, rows in groups.items():
    prefix = f"{group}: " if group else ""
    of_group: list[LawFit] = []
    examined = examine(source, laws[0], rows)
    for law in laws:
      try:
        of_group.append(structs.replace(_fit_law(source, law, rows, examined.kept), group=group))
      except UserError as error:
        if not skip_unfit and len(groups) == 1:
          raise
        unfit.append(f"{prefix}{error}")
    if of_group:
      warnings += [prefix + note for note in examined.notes]
    ranked += sorted(of_group, key=_error_on_hidden_points)
  if not ranked:
    raise UserError(f"--law=auto: {unfit[0]}" if skip_unfit else unfit[0])
  return TableFits(laws=ranked, optimum=[], warnings=warnings + unfit)


def _fit_law(source: Source, law: Law, rows: pl.DataFrame, kept: np.ndarray) -> LawFit:
  values = table.columns(rows, source.path, law.columns, source.columns)
  loss, weights = table.losses(rows, source)
  columns = [values[name][kept] for name in law.columns]
  return summary.table_law(law, columns, loss[kept], None if weights is None else weights[kept])


def examine(source: Source, law: Law, rows: pl.DataFrame) -> notes.Examined:
  """Examines the rows of a group by the usual law of their scales, or by `law` if they are others."""
  usual = next((each for each in (LAWS["power_offset"], LAWS["chinchilla"]) if {*each.columns} == {*law.columns}), law)
  values = table.columns(rows, source.path, law.columns, source.columns)
  loss = table.column(rows, source.path, source.loss, "--loss")
  doubts = units.doubts(source.columns, values, table.names(rows))
  measured.refuse_broken(source.path, doubts)
  examined = measured.examine_part(source, usual, rows, [values[name] for name in usual.columns], loss)
  return notes.Examined(examined.kept, [*map(str, doubts), *examined.notes])


def _error_on_hidden_points(fit: LawFit) -> float:
  return math.inf if fit.backtest is UNSET or fit.backtest is None else fit.backtest.rms_log_error
