"""The uncertainty of a fit's parameters: bootstraps and profiles.

Intervals of parameters measure what the noise of the points does to them. They do not measure how wrong the law may be
beyond the points; for that see `laws.forecast`.
"""

import dataclasses

import numpy as np

from bigmodel.laws import fitting
from bigmodel.laws.fitting import Fit, Sets

KINDS = ("bayesian", "case", "cluster", "residual")
ENOUGH = 1e-7  # relative change of the objective at which a refit has converged: far less than between draws
AT_BOUND = 1e-2  # share of the lowest loss below which a constant of the law may have gone to its bound of 0


def bootstrap(
  fit: Fit, draws: int = 400, seed: int = 0, kind: str = "bayesian", clusters: np.ndarray | None = None
) -> Fit:
  """The fit with draws of its parameters.

  `bayesian` (Rubin 1981) gives every point a random weight, so no point is ever missing; `case` draws points with
  replacement; `cluster` gives random weights to whole clusters, such as all evaluations of one run; `residual` keeps
  the points and draws their residuals. Each refit starts at the fit. A fit with P parameters leaves residuals that are
  too small by sqrt(1 - P / n), so the variance of the random weights is larger than 1 to make up for it.
  """
  rng = np.random.default_rng(seed)
  n = len(fit.loss)
  shape = max(n - len(fit.theta), 1) / n  # of a gamma distribution; 1 would be the exponential one
  weights, losses = np.tile(fit.weights, (draws, 1)), np.tile(fit.loss, (draws, 1))
  if kind == "bayesian":
    random = rng.gamma(shape, size=(draws, n))
    weights = weights * random / random.mean(axis=1, keepdims=True)
  elif kind == "case":
    weights = weights * rng.multinomial(n, np.full(n, 1 / n), size=draws)
  elif kind == "cluster":
    _, cluster = np.unique(np.arange(n) if clusters is None else clusters, return_inverse=True)
    random = rng.gamma(shape, size=(draws, cluster.max() + 1))
    weights = weights * (random / random.mean(axis=1, keepdims=True))[:, cluster]
  else:
    residuals = fit.residuals()
    errors = rng.choice(residuals - residuals.mean(), size=(draws, n)) * np.sqrt(n / max(n - len(fit.theta), 1))
    fitted = fit.predict(*fit.columns)
    losses = fitted + errors if fit.plain else fitted * np.exp(errors)
  return dataclasses.replace(fit, draws=refits(fit, losses, weights))


def refits(fit: Fit, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Parameters [S, P] that fit losses [S, n] with weights [S, n]."""
  draws, n = losses.shape
  if not draws:
    return np.empty((0, len(fit.theta)))
  pad = -n % fitting.PAD

  def with_last(x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)], mode="edge")

  columns = tuple(np.broadcast_to(with_last(x), (draws, n + pad)) for x in fit.columns)
  sets = Sets(columns, with_last(losses), np.pad(weights, ((0, 0), (0, pad))))
  sets, restore = fitting.in_units(fit.law, sets)
  starts = np.array([fitting.theta_in_units(fit.law, theta, fit.columns) for theta in _starts(fit)])
  which = np.repeat(np.arange(draws), len(starts))
  solution = fitting.solve(fit.law, sets, np.tile(starts, (draws, 1)), which, fit.how, ENOUGH)
  values = np.where(np.isfinite(solution.value), solution.value, np.inf).reshape(draws, -1)
  return restore(solution.theta.reshape(draws, len(starts), -1)[np.arange(draws), np.argmin(values, axis=1)])


def _starts(fit: Fit) -> np.ndarray:
  """The fit [S, P], and further starts where a constant of the law is almost 0, since its gradient is almost 0, too."""
  starts = [fit.theta]
  for i, name in enumerate(fit.law.names):
    if name in ("E", "a") and name in fit.law.linear and np.exp(fit.theta[i]) < AT_BOUND * fit.loss.min():
      for share in (0.3, 0.8):
        other = fit.theta.copy()
        other[i] = np.log(share * fit.loss.min())
        starts.append(other)
  return np.array(starts)


def profile(fit: Fit, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The least objective with one parameter held at each of its `values`, relative to the fit's, for each parameter.

  Where it hardly rises the points do not identify the parameter: the fit lies on a ridge.
  """
  pins = [
    (fit.law.names.index(name), fit.law.theta({**fit.params, name: np.float64(value)}))
    for name, each in values.items()
    for value in each
  ]
  mask = np.array([np.arange(len(fit.theta)) == place for place, _ in pins])
  pinned = np.array([theta for _, theta in pins])
  sets = fitting.stack([(fit.columns, fit.loss, fit.weights)] * len(pins))
  sets = dataclasses.replace(sets, held=(mask, pinned))
  solution = fitting.solve(fit.law, sets, pinned, np.arange(len(pins)), fit.how)
  rises = iter(solution.value / fitting.SCALE / max(fit.objective, 1e-300))
  return {name: np.array([next(rises) for _ in each]) for name, each in values.items()}


def ridges(fit: Fit, reach: float = 3.0, rise: float = 0.02) -> dict[str, tuple[float, float]]:
  """Parameters that can be `reach` times smaller or larger at hardly more objective, with its relative rise at both."""
  values = {name: np.array([fit.params[name] / reach, fit.params[name] * reach]) for name in fit.law.names}

  def inside(name: str) -> bool:
    low, high = fit.law.bounds[name]
    return low < values[name].min() and values[name].max() < high

  tried = {name: each for name, each in values.items() if inside(name)}
  rises = {name: each - 1 for name, each in profile(fit, tried).items()} if tried else {}
  return {name: (float(each[0]), float(each[1])) for name, each in rises.items() if each.min() < rise}
