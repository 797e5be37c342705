"""The ledger: sealed forecasts of runs beside the truth, and how well their intervals hold, by distance.

Errors, widths and interval scores (`scoring.interval_score`) are in ln loss. An error is positive where the forecast is
above the truth.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import UNSET

from bigmodel.errors import UserError
from bigmodel.laws import scoring
from bigmodel.laws.facts import Forecast
from bigmodel.laws.seals import LEVELS, Sealed

NOMINAL = dict(zip(LEVELS, (0.5, 0.8, 0.9, 0.95), strict=True))
# Classes of distance, in multiples of the largest fitted run. A budget is met to a step, not exactly.
CLASSES = {"under 8 times": (0.0, 7.6), "8 to 30 times": (7.6, 30.0), "30 to 100 times": (30.0, 95.0)}
FARTHEST = "100 times and more"


class Question(msgspec.Struct, frozen=True, kw_only=True):
  """What a forecast is about: a study, and how many runs of how many times less compute it was made from.

  The names are labels: no seal contains them.
  """

  study: str
  question: str
  family: str
  fitted: int
  distance: float


class Entry(Question, frozen=True, kw_only=True):
  """A sealed forecast beside the truth."""

  distance_is_sealed: bool
  forecaster: str
  sealed_at: str
  sha256: str
  predicted: float
  intervals: dict[str, tuple[float, float]]  # by level, a name of `LEVELS`
  actual: float
  log_error: float  # ln(forecast / truth)
  width: float  # of the 90% interval
  inside: dict[str, bool]
  interval_score: float  # of the 90% interval


class Without(msgspec.Struct, frozen=True):
  """A folder or file that has no score, and why."""

  where: str
  why: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
  """All forecasts of a class of distance."""

  distance: str
  forecasts: int
  coverage: dict[str, float]
  median_error: float  # of the errors' absolute values
  median_width: float
  interval_score: float  # mean


class Ledger(msgspec.Struct, frozen=True):
  """All scored forecasts, the nearest first, with their totals, what has no score, and notes on what was read."""

  forecasts: list[Entry]
  without: list[Without]
  totals: list[Totals]
  notes: list[str]


def entry(question: Question, sealed: Sealed[Forecast], actual: float) -> Entry:
  """The score of a sealed forecast whose run has the loss `actual`.

  The number of runs and the distance are those of the forecast. `question` gives them only where the forecast, made by
  an early version, lacks them. Raises `UserError` if the number of runs differs.
  """
  forecast = sealed.forecast
  intervals = {level: pair for level in LEVELS if (pair := getattr(forecast, level)) is not UNSET}
  method = forecast.forecaster
  truth, low90, high90 = (np.array(x) for x in (actual, *forecast.interval90))
  if forecast.fitted and question.fitted != len(forecast.fitted):
    raise UserError(f"about.fitted is {question.fitted}, and the sealed forecast was made from {len(forecast.fitted)}")
  distance = forecast.parts.get("distance")
  if distance is not None:
    question = msgspec.structs.replace(question, distance=math.exp(distance))
  return Entry(
    **msgspec.structs.asdict(question),
    distance_is_sealed=distance is not None,
    forecaster=f"law {forecast.law}" if method is UNSET else f"{method.name}, version {method.version}",
    sealed_at=sealed.sealed_at,
    sha256=sealed.sha256,
    predicted=forecast.predicted,
    intervals=intervals,
    actual=actual,
    log_error=math.log(forecast.predicted / actual),
    width=math.log(forecast.interval90[1] / forecast.interval90[0]),
    inside={level: bool(low <= actual <= high) for level, (low, high) in intervals.items()},
    interval_score=float(scoring.interval_score(truth, low90, high90, NOMINAL["interval90"])),
  )


def make(entries: Sequence[Entry], without: Sequence[Without], notes: Sequence[str] = ()) -> Ledger:
  """The ledger of scored forecasts, with the totals of each class of distance and, first, of all."""
  ordered = sorted(entries, key=lambda one: one.distance)
  by_class = {"all": ordered}
  for one in ordered:
    by_class.setdefault(class_of(one.distance), []).append(one)
  totals = [_totals(name, group) for name, group in by_class.items() if group]
  return Ledger(ordered, list(without), totals, list(notes))


def class_of(distance: float) -> str:
  """The class of a distance, in multiples of the largest fitted run."""
  return next((name for name, (low, high) in CLASSES.items() if low <= distance < high), FARTHEST)


def _totals(name: str, entries: Sequence[Entry]) -> Totals:
  coverage = {}
  for level in LEVELS:
    inside = [one.inside[level] for one in entries if level in one.inside]
    if inside:
      coverage[level] = sum(inside) / len(inside)
  return Totals(
    distance=name,
    forecasts=len(entries),
    coverage=coverage,
    median_error=float(np.median([abs(one.log_error) for one in entries])),
    median_width=float(np.median([one.width for one in entries])),
    interval_score=float(np.mean([one.interval_score for one in entries])),
  )
