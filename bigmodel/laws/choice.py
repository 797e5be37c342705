"""Which law fits a table: several laws fitted to each of its groups, those that forecast best first."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from bigmodel.errors import UserError
from bigmodel.laws import summary, table
from bigmodel.laws.forms import LAWS, Law

CURVES = ("power", "power_offset", "power_shifted", "bnsl1")  # laws of one scale x
SURFACES = ("chinchilla", "kaplan_nd", "overtraining")  # laws of N and D
Facts = dict[str, Any]  # of one law, for JSON


@dataclasses.dataclass(frozen=True)
class Columns:
  """What the columns of a CSV are: `named` by what laws call them ("N", "x", ...), and those of the loss."""

  path: str
  named: dict[str, str]
  loss: str
  stderr: str = ""
  group: str = ""


def usual_laws(columns: Columns) -> list[Law]:
  """What is tried where the user leaves the choice to us."""
  return [LAWS[name] for name in (CURVES if "x" in columns.named else SURFACES)]


def fit(columns: Columns, laws: Sequence[Law], skip_unfit: bool = False) -> Facts:
  """Fits every law to every group; within a group they come in the order of their errors on hidden points.

  Points of the largest scales are hidden for that (`summary.backtest`). With `skip_unfit` laws that cannot be fitted
  to a group become warnings; without it the first of them raises `UserError`.
  """
  ranked: list[Facts] = []
  warnings: list[str] = []
  for group, rows in table.groups(table.read(columns.path), columns.path, columns.group).items():
    prefix = f"{group}: " if group else ""
    of_group = []
    for law in laws:
      try:
        of_group.append(_fit_one(columns, law, rows) | {"group": group})
      except UserError as error:
        if not skip_unfit:
          raise
        warnings.append(f"{prefix}{error}")
    warnings += [prefix + warning for warning in _warnings(columns, laws[0], rows)]
    ranked += sorted(of_group, key=_error_on_hidden_points)
  if not ranked:
    raise UserError(f"--law=auto: {warnings[0]}")
  return {"laws": ranked, "optimum": [], "warnings": warnings}


def _fit_one(columns: Columns, law: Law, rows: pl.DataFrame) -> Facts:
  values = table.columns(rows, columns.path, law.columns, columns.named)
  loss = table.column(rows, columns.path, columns.loss, "--loss")
  weights = None
  if columns.stderr:
    weights = table.weights(loss, table.column(rows, columns.path, columns.stderr, "--stderr"))
  return summary.law_facts(law, [values[name] for name in law.columns], loss, weights)


def _warnings(columns: Columns, law: Law, rows: pl.DataFrame) -> list[str]:
  values = table.columns(rows, columns.path, law.columns, columns.named)
  loss = table.column(rows, columns.path, columns.loss, "--loss")
  return table.warnings([values[name] for name in law.columns], loss, rows[table.ROW].to_list())


def _error_on_hidden_points(facts: Facts) -> float:
  return facts["backtest"]["rms_log_error"] if facts["backtest"] else math.inf
