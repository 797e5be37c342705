"""Do 90% intervals of forecasts cover 90%, and are they as narrow as they may be?

Claim (usual practice): an interval is correct if it says 90%. Whether it is can be known where the truth is.

Method: points are simulated from laws that are known, in designs that people use, with noise of .1%, .5% and 1.5%. Two
of the laws are not among those that the forecaster fits: they stand for misfit. The largest run is forecast at 4, 8, 32
and 100 times the largest compute of the points, at the size that is best under the true law and at a size 4 times
larger or smaller. Intervals are compared with the loss of one new run there, its noise included. All simulated points
are synthetic.

Result: see `docs/laws.md`, "Calibration in simulation".

    bigmodel reproduce calibration
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from bigmodel.laws import forecast, scoring
from bigmodel.laws.points import Points
from bigmodel.laws.reproduce import Result
from bigmodel.laws.scoring import Judged

DISTANCES = (4, 8, 32, 100)  # multiples of the largest compute of the points
ASIDE = 4  # factor in N between the best size and another that is forecast, too
NOISES = (0.001, 0.005, 0.015)  # standard deviation of ln loss
REPEATS = 3  # simulated data sets for each design, truth and noise: 45 for each design
DRAWS = 100
N0, D0 = 1e8, 2e9  # units of N and D in the truths
LARGEST = 6 * N0 * D0  # FLOPs of the largest runs, times a random power of 10

Random = np.random.Generator
Form = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (parameters, N, D) -> loss


@dataclasses.dataclass(frozen=True)
class Truth:
  """A law with parameters."""

  name: str
  form: Form
  params: np.ndarray

  def loss(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return self.form(self.params, N, D)

  def best_size(self, C: float) -> float:
    """The N of the least loss with C = 6 N D."""
    N = np.sqrt(C / 6) * np.geomspace(1e-4, 1e4, 4001)
    return float(N[np.argmin(self.loss(N, C / 6 / N))])


@dataclasses.dataclass(frozen=True)
class Runs:
  """The sizes and lengths of a design's runs, and what they lose besides noise (in ln loss)."""

  N: np.ndarray
  D: np.ndarray
  excess: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
  """A simulated data set, and runs beyond it with their losses: at each distance the best size, then the other one."""

  design: str
  noise: float
  truth: Truth
  points: Points
  beyond: Points


def _chinchilla(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  E, a, b, alpha, beta = p
  return E + a * (N / N0) ** -alpha + b * (D / D0) ** -beta


def _nested(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  k = p[5]
  return p[0] + (_chinchilla(np.array([0, *p[1:5]]), N, D)) ** k


def _bent(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  """Chinchilla's law; the shortest runs, of few optimizer steps, lie above it by the share p[5]."""
  return _chinchilla(p[:5], N, D) * np.exp(p[5] * p[6] / D)


def _kaplan(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  level, share, alpha, beta = p
  return level * (share * (N / N0) ** (-alpha / beta) + (1 - share) * D0 / D) ** beta


def _parameters(random: Random) -> list[float]:
  """E, a, b, alpha and beta: around those of Hoffmann et al. 2022 and Besiroglu et al. 2024."""
  return [random.uniform(*ends) for ends in ((1.4, 2.2), (0.5, 1.0), (0.5, 1.0), (0.25, 0.42), (0.25, 0.42))]


def _true_chinchilla(random: Random, shortest: float) -> Truth:
  del shortest
  return Truth("Chinchilla's", _chinchilla, np.array(_parameters(random)))


def _true_overtraining(random: Random, shortest: float) -> Truth:
  """The form of Gadre et al. 2024: Chinchilla's law with two equal exponents."""
  del shortest
  E, a, b, alpha, _ = _parameters(random)
  return Truth("over-training", _chinchilla, np.array([E, a, b, alpha, alpha]))


def _true_nested(random: Random, shortest: float) -> Truth:
  """L = E + (A / N^alpha + B / D^beta)^k, with k at least 15% from 1."""
  del shortest
  k = np.exp(random.choice([-1, 1]) * random.uniform(0.15, 0.6))
  E, a, b, alpha, beta = _parameters(random)
  return Truth("nested", _nested, np.array([E, a, b, alpha / k, beta / k, k]))


def _true_bent(random: Random, shortest: float) -> Truth:
  return Truth("bent", _bent, np.array([*_parameters(random), random.uniform(0.02, 0.06), shortest]))


def _true_kaplan(random: Random, shortest: float) -> Truth:
  del shortest
  ends = ((2.5, 4.0), (0.3, 0.7), (0.06, 0.1), (0.06, 0.1))
  return Truth("Kaplan's", _kaplan, np.array([random.uniform(*each) for each in ends]))


# From a random state and the D of the shortest run.
TRUTHS: dict[str, Callable[[Random, float], Truth]] = {
  "Chinchilla's": _true_chinchilla,
  "over-training": _true_overtraining,
  "Kaplan's": _true_kaplan,
  "nested": _true_nested,
  "bent": _true_bent,
}
FITTED = ("Chinchilla's", "over-training", "Kaplan's")  # truths that are among the laws of the forecaster


def _largest(random: Random) -> float:
  return LARGEST * 10 ** random.uniform(-1, 2)


def _runs(N: np.ndarray, C: np.ndarray) -> Runs:
  return Runs(N, C / 6 / N, np.zeros(len(N)))


def _isoflop(random: Random) -> Runs:
  """5 budgets over 1 to 1.5 decades, each with 5 sizes over a factor of 16 around a guess of the best."""
  budgets = _largest(random) * np.geomspace(10 ** -random.uniform(1, 1.5), 1, 5)
  tokens_per_parameter = 20 * np.exp(random.uniform(-0.5, 0.5))
  C = np.repeat(budgets, 5)
  return _runs(np.sqrt(C / 6 / tokens_per_parameter) * np.tile(np.geomspace(1 / 4, 4, 5), 5), C)


def _quickstart(random: Random) -> Runs:
  """5 budgets over a factor of 12; of a grid of sizes those with 6 to 160 tokens for each parameter, 4 or 5 of them."""
  budgets = _largest(random) * np.geomspace(1 / 12, 1, 5)
  grid = np.sqrt(budgets[-1] / 120) * 1.45 ** (np.arange(-12, 13) + random.uniform())
  C, N = (x.ravel() for x in np.meshgrid(budgets, grid, indexing="ij"))
  ratio = C / 6 / N**2
  kept = (ratio > 6) & (ratio < 160)
  return _runs(N[kept], C[kept])


def _ladder(random: Random) -> Runs:
  """8 runs of 20 tokens for each parameter, over 1.5 to 2.5 decades of compute."""
  C = _largest(random) * np.geomspace(10 ** -random.uniform(1.5, 2.5), 1, 8)
  return _runs(np.sqrt(C / 120), C)


def _scattered(random: Random, count: int = 240, decades: float = 3.0) -> Runs:
  """Runs of random compute and size."""
  C = _largest(random) * 10 ** -(decades * np.append(random.uniform(size=count - 1), 0))
  return _runs(np.sqrt(C / 120) * 10 ** random.uniform(-0.7, 0.7, count), C)


def _few(random: Random) -> Runs:
  return _scattered(random, 12, 1.3)


def _erratic(random: Random) -> Runs:
  """The smallest third of a quickstart's runs lies above the law by 4% on average, each by a different share."""
  runs = _quickstart(random)
  C = runs.N * runs.D
  small = np.argsort(C, kind="stable")[: len(C) // 3]
  excess = np.zeros(len(C))
  excess[small] = 0.05 * np.abs(random.normal(size=len(small)))
  return dataclasses.replace(runs, excess=excess)


def _diverged(random: Random) -> Runs:
  """One of an isoFLOP design's runs has 1.3 to 2.5 times the loss that it should have."""
  runs = _isoflop(random)
  excess = np.zeros(len(runs.N))
  excess[random.integers(len(excess))] = np.log(random.uniform(1.3, 2.5))
  return dataclasses.replace(runs, excess=excess)


DESIGNS: dict[str, Callable[[Random], Runs]] = {
  "isoFLOP 5 x 5": _isoflop,
  "quickstart": _quickstart,
  "ladder of 8": _ladder,
  "scattered 240": _scattered,
  "scattered 12": _few,
  "erratic small runs": _erratic,
  "one diverged run": _diverged,
}


def simulate(design: str, truth: str, noise: float, seed: int) -> Case:
  """One data set of a design from a true law, and what lies beyond it; the same for the same arguments."""
  random = np.random.default_rng([seed, list(DESIGNS).index(design), list(TRUTHS).index(truth), round(noise * 1e6)])
  runs = DESIGNS[design](random)
  C = 6 * runs.N * runs.D
  law = TRUTHS[truth](random, runs.D.min())
  points = Points(runs.N, runs.D, C, _measured(law, runs, noise, random))
  budgets = C.max() * np.repeat(DISTANCES, 2)
  factors = np.where(np.arange(len(budgets)) % 2, ASIDE ** random.choice([-1.0, 1.0], len(budgets)), 1.0)
  N = np.array([law.best_size(budget) for budget in budgets]) * factors
  beyond = Points(N, budgets / 6 / N, budgets, _measured(law, _runs(N, budgets), noise, random))
  return Case(design, noise, law, points, beyond)


def _measured(law: Truth, runs: Runs, noise: float, random: Random) -> np.ndarray:
  return law.loss(runs.N, runs.D) * np.exp(runs.excess + noise * random.normal(size=len(runs.N)))


def judge(case: Case, draws: int = DRAWS) -> Judged:
  """The forecaster's answers for the runs beyond the points."""
  beyond = case.beyond
  forecaster = forecast.fit(case.points, bootstraps=draws)
  return scoring.judge(forecaster.predict, beyond.N, beyond.D, beyond.C, beyond.loss)


def cases(
  repeats: int,
  designs: Iterable[str] = tuple(DESIGNS),
  truths: Iterable[str] = tuple(TRUTHS),
  noises: Iterable[float] = NOISES,
) -> Iterator[Case]:
  """`repeats` data sets for each design, truth and noise."""
  for design in designs:
    for seed in range(repeats):
      yield from (simulate(design, truth, noise, seed) for truth in truths for noise in noises)


def ideal_width(case: Case) -> np.ndarray:
  """Widths in logs of 90% intervals of `case.beyond` of someone who knows the form of the law and the noise.

  Linearized: the covariance of the parameters of least squares, and the noise of the new run.
  """
  steps = np.eye(len(case.truth.params)) * 1e-5

  def gradients(runs: Points) -> np.ndarray:
    moved = [[case.truth.form(case.truth.params + side * step, runs.N, runs.D) for side in (1, -1)] for step in steps]
    return np.stack([np.log(up / down) / 2e-5 for up, down in moved], axis=1)

  at, beyond = gradients(case.points), gradients(case.beyond)
  variance = np.einsum("ip,pq,iq->i", beyond, np.linalg.pinv(at.T @ at, rcond=1e-14, hermitian=True), beyond)
  return 2 * 1.6449 * case.noise * np.sqrt(1 + variance)


def reproduce(data: Path, repeats: int = REPEATS) -> list[Result]:
  del data
  judged: list[tuple[Case, Judged]] = []
  count = repeats * len(DESIGNS) * len(TRUTHS) * len(NOISES)
  for case in cases(repeats):
    judged.append((case, judge(case)))
    if len(judged) % 15 == 0:
      print(f"calibration: {len(judged)} of {count} simulated data sets, {case.design}", file=sys.stderr, flush=True)
  return stated(judged)


def stated(judged: list[tuple[Case, Judged]]) -> list[Result]:
  """By design and distance, by truth and by noise: coverage, interval score, width, error and bias."""
  results: list[Result] = []
  for design in DESIGNS:
    parts = [part for case, part in judged if case.design == design]
    for i, distance in enumerate(DISTANCES):
      best, other = (scoring.join([part[np.array([2 * i + j])] for part in parts]) for j in (0, 1))
      results += _stated(f"{design}, {distance}x", best, every_level=True)
      results += _stated(f"{design}, {distance}x, {ASIDE} times off the best size", other)
  for name in TRUTHS:
    results += _stated(f"truth {name}, best sizes", _best_sizes(part for c, part in judged if c.truth.name == name))
  for noise in NOISES:
    these = [(case, part) for case, part in judged if case.noise == noise]
    ratios = [(part.width / ideal_width(case))[::2] for case, part in these]
    where = f"noise {noise:.1%}, best sizes"
    results += _stated(where, _best_sizes(part for _, part in these))
    results.append(Result(f"median of width over ideal width, {where}", None, float(np.median(ratios))))
  everything = _best_sizes(part for _, part in judged)
  tenths = enumerate(everything.shares().tolist(), 1)
  return results + [Result(f"share of truths in tenth {i}, best sizes", 0.1, share, 0.03) for i, share in tenths]


def _best_sizes(parts: Iterable[Judged]) -> Judged:
  return scoring.join([part[np.arange(0, len(part), 2)] for part in parts])


def _stated(where: str, judged: Judged, every_level: bool = False) -> list[Result]:
  levels = forecast.LEVELS if every_level else (scoring.LEVEL,)
  results = [Result(f"coverage at {level:.0%}, {where}", level, judged.coverage(level), 0.05) for level in levels]
  results += [
    Result(f"interval score at 90%, {where}", None, float(np.mean(judged.score))),
    Result(f"median width at 90%, {where}", None, float(np.median(judged.width))),
    Result(f"median absolute error, {where}", None, float(np.median(np.abs(judged.error)))),
    Result(f"mean error, {where}", None, float(np.mean(judged.error))),
  ]
  return results + ([Result(f"chi-square of tenths, {where}", None, judged.chi_square())] if every_level else [])
