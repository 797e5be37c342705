"""Sealed forecasts compared with the truth of a CSV: errors, and how many intervals cover the truth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel.errors import UserError
from bigmodel.files import read_json
from bigmodel.laws import forecast, table
from bigmodel.laws.source import Source

Key = tuple[str, ...]


def score(source: Source, forecasts: Sequence[str]) -> dict[str, Any]:
  """The rows of sealed forecast files whose truth the CSV has, and the share that the intervals of each level cover.

  The mean of repeated runs at one scale is their truth. Raises `UserError` for a file that was changed after it was
  sealed, and where the CSV has the truth of no forecast.
  """
  scales = ("x",) if "x" in source.columns else ("N", "D")
  truth = _truth(source, scales)
  ledger: list[dict[str, Any]] = []
  for path in forecasts:
    sealed = forecast.verify(read_json(path), path)
    for row in sealed["rows"]:
      if not all(name in row for name in scales):
        continue
      losses = truth.get(_key(row["group"], [row[name] for name in scales]))
      if losses:
        ledger.append({**row, "sealed_at": sealed["sealed_at"], **_compare(row, float(np.mean(losses)))})
  if not ledger:
    raise UserError(f"--score: {source.path} has the truth of none of these forecasts (same columns and scales?)")
  levels = sorted(ledger[0]["inside"])
  covered = {name: sum(row["inside"][name] for row in ledger) / len(ledger) for name in levels}
  return {"rows": ledger, "coverage": covered}


def _truth(source: Source, scales: Sequence[str]) -> dict[Key, list[float]]:
  """The losses of all runs at each scale of each group."""
  truth: dict[Key, list[float]] = {}
  for group, part in table.groups(table.read(source.path), source.path, source.group).items():
    columns = table.columns(part, source.path, scales, dict(source.columns))
    losses = table.column(part, source.path, source.loss, "--loss")
    for *values, loss in zip(*(columns[name] for name in scales), losses, strict=True):
      truth.setdefault(_key(group, values), []).append(float(loss))
  return truth


def _key(group: str, values: Sequence[float]) -> Key:
  """Equal for scales that agree to nine digits, because those that follow from C = 6 N D are rounded."""
  return (group, *(f"{value:.9g}" for value in values))


def _compare(row: dict[str, Any], actual: float) -> dict[str, Any]:
  inside = {name: row[name][0] <= actual <= row[name][1] for name in row if name.startswith("interval")}
  return {"actual": actual, "inside": inside, "log_error": math.log(actual / row["predicted"])}
