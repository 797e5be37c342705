"""Seals: forecasts that are kept with a time and a hash, and compared with the truth later.

The hash is that of the JSON document, so that seals of earlier versions verify although their fields differ.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
import numpy as np
from etils import epath
from msgspec import UNSET

from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json_object, write_json
from bigmodel.laws import facts, table
from bigmodel.laws.facts import Forecast, ForecastRow, Score, ScoredRow, ScoreTotal, TableForecast
from bigmodel.laws.source import Source
from bigmodel.record import Record

AnyForecast = TypeVar("AnyForecast", Forecast, TableForecast)
LEVELS = {"interval50": 0.5, "interval80": 0.8, "interval90": 0.9, "interval95": 0.95}


@dataclasses.dataclass(frozen=True)
class Sealed(Generic[AnyForecast]):
  """A forecast with the time at which it was sealed (ISO 8601, UTC) and the hash of its document."""

  forecast: AnyForecast
  sealed_at: str
  sha256: str

  def to_json(self) -> JsonObject:
    """The document that is kept."""
    return facts.to_json(self.forecast) | {"sealed_at": self.sealed_at, "sha256": self.sha256}


class Provenance(msgspec.Struct, frozen=True):
  """The part of a run's provenance.json that shows whether the run tests a forecast."""

  started_at: str
  forecast_sha256: str = ""


def seal(forecast: AnyForecast, sealed_at: str) -> Sealed[AnyForecast]:
  """The forecast with its time and the hash of both."""
  document = facts.to_json(forecast) | {"sealed_at": sealed_at}
  return Sealed(forecast, sealed_at, _sha256_of(document))


def unseal(document: JsonObject, kind: type[AnyForecast], where: str = "forecast") -> Sealed[AnyForecast]:
  """The sealed forecast of a document; raises `UserError` if it was changed since, or is not of this kind."""
  missing = [name for name in ("sealed_at", "sha256") if not isinstance(document.get(name), str)]
  if missing:
    raise UserError(f"{where}: not a sealed forecast, as --seal writes it (no {missing[0]})")
  content = {name: value for name, value in document.items() if name != "sha256"}
  if document.get("sha256") != _sha256_of(content):
    raise UserError(f"{where}: the forecast is not what was sealed (sha256 does not match)")
  return Sealed(facts.from_json(document, kind, where), document["sealed_at"], document["sha256"])


def write(path: epath.PathLike, sealed: Sealed[Forecast] | Sealed[TableForecast]) -> None:
  """Writes the document of a sealed forecast."""
  write_json(path, sealed.to_json())


def read(path: epath.PathLike, kind: type[AnyForecast]) -> Sealed[AnyForecast]:
  """The sealed forecast at `path`, verified."""
  return unseal(read_json_object(path), kind, str(path))


def score(sealed: Sealed[Forecast], record: Record, provenance: Provenance) -> Score:
  """The forecast against the truth; raises `UserError` unless the run carries the seal and started after it."""
  if provenance.forecast_sha256 != sealed.sha256:
    raise UserError(f"run {record.run_id} does not carry the seal of this forecast: no score")
  if provenance.started_at <= sealed.sealed_at:
    raise UserError(f"run {record.run_id} started before the forecast was sealed: no score")
  if not record.finished:
    return Score()
  low, high = sealed.forecast.interval90
  actual = record.loss
  return Score(actual, bool(low <= actual <= high), math.log(sealed.forecast.predicted / actual))


Truth = dict[tuple[str, ...], list[float]]  # losses of runs (several if they repeat) by group and scales


def read_truth(source: Source, scales: Sequence[str]) -> tuple[Truth, list[str]]:
  """The losses of a table by group and by the columns `scales`, and notes on how it was read."""
  truth: Truth = {}
  read_ = table.read(source)
  for name, part in table.groups(read_.frame, source.path, source.group).items():
    columns = table.columns(part, source.path, scales, source.columns)
    losses = table.column(part, source.path, source.loss, "--loss")
    for *values, loss in zip(*(columns[scale] for scale in scales), losses, strict=True):
      truth.setdefault(_key(name, values), []).append(float(loss))
  return truth, [*read_.notes, *_repeated(truth)]


def _repeated(truth: Truth) -> list[str]:
  """A note on scales with several losses, naming those that differ most."""
  repeated = [losses for losses in truth.values() if max(losses) > min(losses)]
  if not repeated:
    return []
  low, high = max(((min(losses), max(losses)) for losses in repeated), key=lambda ends: ends[1] / ends[0])
  return [
    f"the truth is a mean of several losses at {len(repeated)} of {len(truth)} scales; they differ most from {low:.5g}"
    f" to {high:.5g}"
  ]


def ledger(forecasts: Sequence[Sealed[TableForecast]], truth: Truth, scales: Sequence[str]) -> list[ScoredRow]:
  """Every row of the forecasts whose truth is known, with it: the mean of runs that repeat."""
  scored = []
  for sealed in forecasts:
    for row in sealed.forecast.rows:
      values = place(row, scales)
      losses = truth.get(_key(row.group, values)) if values else None
      if losses:
        scored.append(_score_row(row, sealed.sealed_at, float(np.mean(losses))))
  return scored


def place(row: ForecastRow, scales: Sequence[str]) -> list[float]:
  """The values of the scales of a row; empty if it does not have all of them, or has others."""
  given = {name: getattr(row, name) for name in ("N", "D", "C", "x")}
  values = {name: float(value) for name, value in given.items() if value is not UNSET} | (row.columns or {})
  complete = set(row.columns or {}) <= set(scales) <= set(values)
  return [values[scale] for scale in scales] if complete else []


def _score_row(row: ForecastRow, sealed_at: str, actual: float) -> ScoredRow:
  intervals = {level: getattr(row, level) for level in LEVELS if getattr(row, level) is not UNSET}
  inside = {level: bool(low <= actual <= high) for level, (low, high) in intervals.items()}
  values = {name: getattr(row, name) for name in row.__struct_fields__}
  return ScoredRow(
    **values,
    sealed_at=sealed_at,
    actual=actual,
    inside=inside,
    log_error=math.log(row.predicted / actual),
    relative_error=row.predicted / actual - 1,
    interval_score={name: interval_score(ends, actual, LEVELS[name]) for name, ends in intervals.items()},
  )


def interval_score(interval: tuple[float, float], actual: float, level: float) -> float:
  """The width of an interval in ln loss, and 2 / (1 - level) for each unit by which the truth lies outside.

  Gneiting and Raftery 2007, equation 43. Smaller is better.
  """
  low, high = (math.log(end) if end > 0 else -math.inf for end in interval)
  outside = max(low - math.log(actual), math.log(actual) - high, 0.0)
  return high - low + 2 / (1 - level) * outside


def coverage(scored: Sequence[ScoredRow]) -> dict[str, float]:
  """The share of rows whose truth lies in the interval of each level, for the levels that all rows have."""
  levels = [level for level in LEVELS if all(level in row.inside for row in scored)]
  return {level: sum(row.inside[level] for row in scored) / len(scored) for level in levels}


def total(scored: Sequence[ScoredRow]) -> ScoreTotal:
  """The scores of forecasts together, for the levels that all of them have."""
  covered = coverage(scored)
  return ScoreTotal(
    forecasts=len(scored),
    relative_error=float(np.mean([abs(row.relative_error) for row in scored])),
    rmsle=float(np.sqrt(np.mean([row.log_error**2 for row in scored]))),
    coverage=covered,
    interval_score={level: float(np.mean([row.interval_score[level] for row in scored])) for level in covered},
  )


def by_group(scored: Sequence[ScoredRow]) -> dict[str, ScoreTotal]:
  """The scores of each group together; empty if there is only one."""
  names = list(dict.fromkeys(row.group or "" for row in scored))
  return {name: total([row for row in scored if (row.group or "") == name]) for name in names} if len(names) > 1 else {}


def _key(group: str | None, values: Sequence[float]) -> tuple[str, ...]:
  """Group and scales to nine digits, because those that follow from C = 6 N D are rounded."""
  return (group or "", *(f"{value:.9g}" for value in values))


def _sha256_of(document: JsonObject) -> str:
  return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
