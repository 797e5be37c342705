"""Fits several laws to each group of a table; those that forecast best come first."""

import math
from collections.abc import Sequence

import polars as pl
from msgspec import UNSET, structs

from bigmodel.errors import UserError
from bigmodel.laws import summary, table
from bigmodel.laws.facts import LawFit, TableFits
from bigmodel.laws.forms import LAWS, Law
from bigmodel.laws.source import Source

CURVES = ("power", "power_offset", "power_shifted", "bnsl1")  # laws of one scale x
SURFACES = ("chinchilla", "kaplan_nd", "overtraining")  # laws of N and D


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
  warnings: list[str] = []
  runs = table.read(source)
  groups = table.groups(runs.frame, source.path, source.group)
  for law in () if skip_unfit else laws:
    table.columns(runs.frame, source.path, law.columns, source.columns)
  for group, rows in groups.items():
    prefix = f"{group}: " if group else ""
    of_group: list[LawFit] = []
    for law in laws:
      try:
        of_group.append(structs.replace(_fit_law(source, law, rows), group=group))
      except UserError as error:
        if not skip_unfit and len(groups) == 1:
          raise
        warnings.append(f"{prefix}{error}")
    if of_group:
      warnings += [prefix + warning for warning in _warnings(source, laws[0], rows)]
    ranked += sorted(of_group, key=_error_on_hidden_points)
  if not ranked:
    raise UserError(f"--law=auto: {warnings[0]}" if skip_unfit else warnings[0])
  return TableFits(laws=ranked, optimum=[], warnings=runs.notes + warnings)


def _fit_law(source: Source, law: Law, rows: pl.DataFrame) -> LawFit:
  values = table.columns(rows, source.path, law.columns, source.columns)
  loss, weights = table.losses(rows, source)
  return summary.table_law(law, [values[name] for name in law.columns], loss, weights)


def _warnings(source: Source, law: Law, rows: pl.DataFrame) -> list[str]:
  values = table.columns(rows, source.path, law.columns, source.columns)
  loss = table.column(rows, source.path, source.loss, "--loss")
  return table.warnings([values[name] for name in law.columns], loss, rows[table.ROW].to_list())


def _error_on_hidden_points(fit: LawFit) -> float:
  return math.inf if fit.backtest is UNSET or fit.backtest is None else fit.backtest.rms_log_error
