"""Sealed forecasts: kept with their time and a hash, compared with the truth, and counted."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import table
from bigmodel.record import Record


def seal(facts: dict[str, Any], sealed_at: str) -> dict[str, Any]:
  """A forecast with its time and the hash of all of it."""
  facts = {**facts, "sealed_at": sealed_at}
  return {**facts, "sha256": _sha256_of(facts)}


def verify(forecast: dict[str, Any], where: str = "forecast") -> dict[str, Any]:
  """The forecast itself; refuses one that was changed after it was sealed."""
  facts = {name: value for name, value in forecast.items() if name != "sha256"}
  if forecast.get("sha256") != _sha256_of(facts):
    raise UserError(f"{where}: the forecast is not what was sealed (sha256 does not match)")
  return forecast


def score(forecast: dict[str, Any], record: Record, provenance: dict[str, Any]) -> dict[str, Any]:
  """Forecast against truth; refused unless the run carries the seal and started after it."""
  verify(forecast)
  if provenance.get("forecast_sha256") != forecast["sha256"]:
    raise UserError(f"run {record.run_id} does not carry the seal of this forecast: no score")
  if provenance["started_at"] <= forecast["sealed_at"]:
    raise UserError(f"run {record.run_id} started before the forecast was sealed: no score")
  if not record.finished:
    return {"actual": None, "inside": None, "log_error": None}
  low, high = forecast["interval90"]
  actual = record.loss
  return {
    "actual": actual,
    "inside": bool(low <= actual <= high),
    "log_error": math.log(actual / forecast["predicted"]),
  }


Truth = dict[tuple[str, ...], list[float]]  # losses of runs (more than one where they repeat) by group and scale


def read_truth(path: str, scales: Sequence[str], named: dict[str, str], loss: str, group: str) -> Truth:
  """The losses of a CSV by group and by the columns `scales`; `named` says which columns these are."""
  truth: Truth = {}
  for name, part in table.groups(table.read(path), path, group).items():
    columns = table.columns(part, path, scales, named)
    losses = table.column(part, path, loss, "--loss")
    for *values, y in zip(*(columns[scale] for scale in scales), losses, strict=True):
      truth.setdefault(_key(name, values), []).append(float(y))
  return truth


def ledger(forecasts: Sequence[dict[str, Any]], truth: Truth, scales: Sequence[str]) -> list[dict[str, Any]]:
  """Every forecast row whose truth is there, with it: the mean of runs that repeat."""
  scored = []
  for forecast in forecasts:
    for row in forecast["rows"]:
      if not all(scale in row for scale in scales):
        continue
      losses = truth.get(_key(row["group"], [row[scale] for scale in scales]))
      if not losses:
        continue
      actual = float(np.mean(losses))
      levels = [name for name in row if name.startswith("interval")]
      inside = {name: bool(row[name][0] <= actual <= row[name][1]) for name in levels}
      log_error = math.log(actual / row["predicted"])
      about = {"sealed_at": forecast["sealed_at"], "actual": actual, "inside": inside, "log_error": log_error}
      scored.append({**row, **about})
  return scored


def coverage(scored: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Of the rows of a ledger: the share whose truth lies in the interval of each level."""
  levels = sorted(scored[0]["inside"])
  return {level: sum(row["inside"][level] for row in scored) / len(scored) for level in levels}


def _key(group: str | None, values: Sequence[float]) -> tuple[str, ...]:
  """To nine digits: what follows from C = 6 N D is rounded."""
  return (group or "", *(f"{value:.9g}" for value in values))


def _sha256_of(facts: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
