"""Proposes the next run: the one that reduces the variance of a forecast most for its compute.

The variance of a forecast (`laws.forecast.Forecaster`) is that of the laws' parameters plus a discrepancy that grows
with the distance of the target from the largest run. One more run at (N, D) lowers the first as a measurement lowers
the variance of a correlated quantity, by the draws of the fits, and the second if it is larger than all others.
"""

import dataclasses
import math

import msgspec
import numpy as np

from bigmodel.laws import isoflop, optimum, reach
from bigmodel.laws.facts import ForecastMethod, Interval, finite
from bigmodel.laws.forecast import Forecaster, Scale
from bigmodel.laws.points import Points

BUDGETS = 9  # of candidates, from the smallest that was run to the cap
WORTH = 0.05  # share of the variance that the next run has to take off it
RATIOS = np.geomspace(1 / 2, 2, 7)  # of the sizes of candidates to the best size, which people would train


@dataclasses.dataclass(frozen=True)
class Variance:
  """Parts of the variance of ln loss at a target: [1] of the runs so far, or with one more run [runs]."""

  parameters: np.ndarray
  discrepancy: np.ndarray

  @property
  def total(self) -> np.ndarray:
    return self.parameters + self.discrepancy


class Candidate(msgspec.Struct, frozen=True):
  """A run that could be next; `reduction` is the share of the variance that it takes off."""

  C: float
  N: float
  D: float
  reduction: float
  reduction_per_flop: float


class Edge(msgspec.Struct, frozen=True):
  """The sizes of a budget and its best size; `inside`: that lies within the sizes."""

  C: float
  smallest: float
  largest: float
  N: float | None
  inside: bool


class Parts(msgspec.Struct, frozen=True):
  """Standard deviations in ln loss."""

  parameters: float
  discrepancy: float


class ScaleFacts(msgspec.Struct, frozen=True):
  """A `forecast.Scale` that is the best for its budget, with intervals of the best size and its tokens."""

  N: float
  D: float
  C: float
  N_interval90: Interval | None = None
  D_interval90: Interval | None = None


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
  """Candidates for the next run, the best of them, and the edges of the budgets so far."""

  target: ScaleFacts
  forecaster: ForecastMethod
  predicted: float
  sd: float
  parts: Parts
  noise: float
  candidates: list[Candidate]
  next: Candidate | None
  edges: list[Edge]
  beyond: float = 1.0  # the target's compute as a factor of that of the points, see `reach.times`
  warnings: list[str] = []


def variance(forecaster: Forecaster, target: Scale) -> Variance:
  """Parts of the variance of ln loss at `target`."""
  parts = forecaster.predict([target.N], [target.D], [target.C])
  return Variance(parts.parameters**2, parts.discrepancy**2)


def variance_with(forecaster: Forecaster, target: Scale, added: Points) -> Variance:
  """The same parts with one more run, for each of those in `added`, whose losses are not used."""
  columns = (np.append(getattr(target, name), getattr(added, name)) for name in "NDC")
  at_target, *at_added = forecaster.draws(*columns).T
  parameters = np.var(at_target)
  covariance = np.array([np.mean((at_target - at_target.mean()) * (each - each.mean())) for each in at_added])
  measured = np.var(at_added, axis=1) + forecaster.spread.noise**2
  left = forecaster.distance(target.N, target.D, added)
  nearer = left / np.maximum(forecaster.distance(target.N, target.D), 1e-300)
  return Variance(
    parameters=np.maximum(parameters - covariance**2 / np.maximum(measured, 1e-300), 0.0),
    discrepancy=variance(forecaster, target).discrepancy * nearer**2,
  )


def candidates(forecaster: Forecaster, target: Scale, cap: float) -> list[Candidate]:
  """The run that lowers the variance most at each of some budgets up to `cap`."""
  k = forecaster.points.flops_per_nd
  budgets = np.geomspace(min(forecaster.points.C.min(), cap), cap, BUDGETS)
  N = np.concatenate([optimum.best(forecaster, C).N * RATIOS for C in budgets])
  C = np.repeat(budgets, len(RATIOS))
  runs = Points(N, C / (k * N), C, np.ones_like(N))
  reduction = 1 - variance_with(forecaster, target, runs).total / variance(forecaster, target).total
  chosen = []
  for first in range(0, len(N), len(RATIOS)):
    best = first + int(np.argmax(reduction[first : first + len(RATIOS)]))
    share, flops = float(reduction[best]), float(C[best])
    chosen.append(Candidate(flops, float(N[best]), float(runs.D[best]), share, share / flops))
  return chosen


def edges(points: Points) -> list[Edge]:
  """Whether the best size of each budget lies within its sizes, for budgets with enough of them."""
  made = []
  for profile in isoflop.fit(points).profiles:
    N = points.N[np.abs(np.log(points.budgets() / profile.C)) < 0.01]
    best = profile.N if math.isfinite(profile.N) else None
    made.append(Edge(profile.C, float(N.min()), float(N.max()), best, profile.inside))
  return made


def design(forecaster: Forecaster, C: float, cap: float) -> Proposal:
  """Proposes a run of up to `cap` FLOPs for the forecast of the loss at the optimum for C."""
  size = optimum.at(forecaster, C)
  target = Scale(size.N, size.D, C)
  parts = variance(forecaster, target)
  tried = candidates(forecaster, target, cap)
  worth = [candidate for candidate in tried if candidate.reduction >= WORTH]
  proposal = Proposal(
    target=ScaleFacts(target.N, target.D, target.C, size.N_interval90, size.D_interval90),
    forecaster=forecaster.method(),
    predicted=math.exp(forecaster.log_loss([size.N], [size.D], [C])[0]),
    sd=math.sqrt(parts.total[0]),
    parts=Parts(math.sqrt(parts.parameters[0]), math.sqrt(parts.discrepancy[0])),
    noise=forecaster.spread.noise,
    candidates=tried,
    next=max(worth, key=lambda candidate: candidate.reduction_per_flop) if worth else None,
    edges=edges(forecaster.points),
    beyond=reach.times(C, forecaster.points.C),
  )
  return finite(proposal)
