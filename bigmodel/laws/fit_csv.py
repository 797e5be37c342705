"""Laws fitted to a CSV of runs, and the choice between several laws by how well each forecasts hidden points."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from bigmodel.errors import UserError
from bigmodel.laws import forms, summary, table
from bigmodel.laws.source import Source

# The laws that `auto` tries, for a CSV with one scale and for one with N and D.
CURVES = ("power", "power_offset", "power_shifted", "bnsl1")
SURFACES = ("chinchilla", "kaplan_nd", "overtraining")
AUTO = "auto"


def fit(source: Source, law: str = "", at: Sequence[float] = ()) -> dict[str, Any]:
  """Fits laws to a CSV; of each group the law that forecasts its hidden points best comes first.

  `law` is a list of names separated by commas, `auto`, or empty for the usual law of the given columns. `at` are
  budgets in FLOPs whose optimum is wanted, for Chinchilla's law alone. Returns `laws`, `optimum` and `warnings`.
  """
  is_curve = "x" in source.columns
  names = law.split(",") if law else ["power_offset" if is_curve else "chinchilla"]
  if law == AUTO:
    names = list(CURVES if is_curve else SURFACES)
  laws = [forms.find(name) for name in names if name != "isoflop"]
  if not source.group and names in (["chinchilla"], ["isoflop"]):
    return _fit_compute(source, names[0], at)
  if len(laws) < len(names):
    raise UserError("--law: isoflop is fitted alone and without --group")
  if at or source.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  fits: list[dict[str, Any]] = []
  warnings: list[str] = []
  for group, part in table.groups(table.read(source.path), source.path, source.group).items():
    of_group, said = _fit_group(source, laws, part, skip_unsuited=law == AUTO)
    fits += [facts | {"group": group} for facts in of_group]
    warnings += [f"{group}: {text}" if group else text for text in said]
  if not fits:
    raise UserError(f"--law=auto: {warnings[0]}")
  return {"laws": fits, "optimum": [], "warnings": warnings}


def _fit_compute(source: Source, law: str, at: Sequence[float]) -> dict[str, Any]:
  """Chinchilla's law or parabolas. `N` may name several columns: the first is fitted, the others for comparison."""
  names = source.columns["N"].split(",") if "N" in source.columns else []
  points, *others = [source.with_column("N", name).points() for name in names] or [source.points()]
  if law == "isoflop":
    facts = summary.fit_profiles(points)
  else:
    facts = summary.fit_points(points, at, dict(zip(names[1:], others, strict=True)))
  rows = [] if points.rows is None else points.rows.tolist()
  return facts | {"warnings": table.warnings((points.N, points.D), points.loss, rows)}


def _fit_group(
  source: Source, laws: Sequence[forms.Law], part: pl.DataFrame, skip_unsuited: bool
) -> tuple[list[dict[str, Any]], list[str]]:
  """The laws of one group's rows, best forecaster first, and what a reader should know before believing them."""
  fits: list[dict[str, Any]] = []
  warnings: list[str] = []
  loss = table.column(part, source.path, source.loss, "--loss")
  weights = None
  if source.stderr:
    weights = table.weights(loss, table.column(part, source.path, source.stderr, "--stderr"))
  for law in laws:
    columns = table.columns(part, source.path, law.columns, dict(source.columns))
    values = [columns[name] for name in law.columns]
    try:
      fits.append(summary.law_facts(law, values, loss, weights))
    except UserError as error:
      if not skip_unsuited:
        raise
      warnings.append(str(error))
    if law is laws[0]:
      warnings += table.warnings(values, loss, part[table.ROW].to_list())
  return sorted(fits, key=_hidden_error), warnings


def _hidden_error(facts: dict[str, Any]) -> float:
  """How wrong a law was about the points that were hidden from it; infinite where none could be hidden."""
  return facts["backtest"]["rms_log_error"] if facts["backtest"] else np.inf
