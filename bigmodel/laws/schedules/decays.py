"""Proposes the decay of the learning rate that ends at the lowest loss for a number of steps, by fitted laws.

Candidates differ in the share of the steps over which the rate falls, in the shape of the fall and in the rate at the
end. The last is not below the lowest rate of the fitted curves, where the laws are not tested.
"""

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws.facts import ForecastMethod, finite
from bigmodel.laws.schedules import budgets, forecast
from bigmodel.laws.schedules import sums as schedule_sums
from bigmodel.laws.schedules.answers import ScheduleLaw, laws_of
from bigmodel.laws.schedules.budgets import PerStep
from bigmodel.laws.schedules.forecast import FALL, Forecaster

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # of the steps after the warm-up
FINALS = (0.03, 0.1, 0.3)  # of the peak, besides the lowest rate of the fitted curves
MOST_STEPS = 2_000_000
LEVEL = 0.9


def _linear(done: np.ndarray, final: float) -> np.ndarray:
  return 1 - (1 - final) * done


def _cosine(done: np.ndarray, final: float) -> np.ndarray:
  return final + (1 - final) * 0.5 * (1 + np.cos(np.pi * done))


def _root(done: np.ndarray, final: float) -> np.ndarray:
  """1 - sqrt (Haegele et al. 2024)."""
  return 1 - (1 - final) * np.sqrt(done)


def _exponential(done: np.ndarray, final: float) -> np.ndarray:
  return max(final, 1e-3) ** done


SHAPES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
  "linear": _linear,
  "cosine": _cosine,
  "1-sqrt": _root,
  "exponential": _exponential,
}


class Decay(msgspec.Struct, frozen=True):
  """A decay from step `start` to the end, and the loss there.

  `difference` is its loss less that of the proposed decay, `difference90` the interval of it.
  """

  name: str
  shape: str
  start: int
  final: float  # share of the peak
  predicted: float
  interval90: tuple[float, float]
  difference: float
  difference90: tuple[float, float]


class DecayProposal(msgspec.Struct, frozen=True):
  """The best decay for a number of steps, beside the usual ones of the same length.

  `tokens` and `flops` are those of the steps, where the curves say them.
  """

  steps: int
  warmup: int
  peak: float
  best: Decay
  usual: list[Decay]
  forecaster: ForecastMethod
  laws: list[ScheduleLaw]
  lowest_fitted: float  # rate, as a share of the peak
  warnings: list[str] = []
  group: str = ""
  tokens: float | None = None
  flops: float | None = None


class DecayProposals(msgspec.Struct, frozen=True):
  """The proposals for the sets of runs in a folder."""

  proposals: list[DecayProposal]


@dataclasses.dataclass(frozen=True)
class _Candidate:
  name: str
  shape: str
  share: float
  final: float

  def start(self, steps: int, warmup: int) -> int:
    return steps - max(1, round(self.share * (steps - warmup)))

  def rates(self, steps: int, warmup: int, peak: float) -> np.ndarray:
    start = self.start(steps, warmup)
    at = np.arange(steps + 1)
    done = np.clip((at - start) / (steps - start), 0, 1)
    return peak * np.minimum(at / max(warmup, 1), SHAPES[self.shape](done, self.final))


def propose(
  forecaster: Forecaster,
  steps: int,
  warmup: int,
  notes: list[str],
  group: str = "",
  per_step: PerStep = budgets.UNKNOWN,
) -> DecayProposal:
  """Proposes a decay; raises `UserError` if the fitted curves do not identify what decays do."""
  if max(map(forecast.fall, forecaster.curves)) < FALL:
    raise UserError(
      f"the learning rate falls in none of the {len(forecaster.curves)} curves after the warm-up, so what a decay does"
      " cannot be identified; add a curve with a decay"
    )
  if not warmup < steps <= MOST_STEPS:
    raise UserError(
      f"a run of {steps:,} steps cannot be designed: it is not above the warm-up of {warmup:,} steps and at most"
      f" {MOST_STEPS:,}"
    )
  finals = [forecaster.lowest, *(final for final in FINALS if final > 1.05 * forecaster.lowest)]
  usual = [
    _Candidate("cosine", "cosine", 1.0, finals[0]),
    _Candidate("linear", "linear", 1.0, finals[0]),
    _Candidate("wsd, a fifth", "linear", 0.2, finals[0]),
    _Candidate("wsd, a tenth", "linear", 0.1, finals[0]),
  ]
  tried = [_Candidate("proposed", shape, share, final) for shape in SHAPES for share in SHARES for final in finals]
  best, of_usual = _compared(forecaster, tried, usual, steps, warmup)
  laws = laws_of(forecaster, group)
  proposal = DecayProposal(
    steps=steps,
    warmup=warmup,
    peak=forecaster.units.peak,
    best=best,
    usual=of_usual,
    forecaster=ForecastMethod(forecast.NAME, forecast.VERSION, {law.name: law.weight for law in laws}),
    laws=laws,
    lowest_fitted=forecaster.lowest,
    warnings=[*notes, *forecast.longer(forecaster, steps, f"a run of {steps:,} steps")],
    group=group,
    tokens=None if per_step.tokens is None else steps * per_step.tokens,
    flops=None if per_step.flops is None else steps * per_step.flops,
  )
  return finite(proposal)


def _compared(
  forecaster: Forecaster, tried: list[_Candidate], usual: list[_Candidate], steps: int, warmup: int
) -> tuple[Decay, list[Decay]]:
  """`(the best of those that were tried, the usual ones beside it)`."""
  at_end, peak = np.array([steps]), forecaster.units.peak
  sums = [forecaster.units.sums(each.rates(steps, warmup, peak), at_end) for each in (*tried, *usual)]
  losses = forecaster.predict_sums(schedule_sums.stack(sums[: len(tried)])).predicted
  best = int(np.argmin(losses))
  shown = [tried[best], *usual]
  stacked = schedule_sums.stack([sums[best], *sums[len(tried) :]])
  prediction = forecaster.predict_sums(stacked)
  low, high = prediction.interval(LEVEL)
  difference, sd = forecaster.difference(stacked, stacked.take(np.array([0])))
  half = forecast.quantile(LEVEL) * sd
  made = []
  for i, each in enumerate(shown):
    loss, of_best = prediction.predicted[i], prediction.predicted[0]
    ends = of_best * np.expm1(difference[i] + half[i] * np.array([-1.0, 1.0])) if i else np.zeros(2)
    made.append(
      Decay(
        name=each.name,
        shape=each.shape,
        start=each.start(steps, warmup),
        final=each.final,
        predicted=float(loss),
        interval90=(float(low[i]), float(high[i])),
        difference=float(loss - of_best),
        difference90=(float(ends[0]), float(ends[1])),
      )
    )
  return made[0], made[1:]
