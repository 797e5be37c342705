"""How far a fit's parameters are known: bootstraps and profiles.

Intervals of a law's parameters say what the noise of the points does to them. They say nothing of a law
that is wrong where nobody has looked: see `laws.forecast` for that.
"""

import dataclasses

import numpy as np

from bigmodel.laws import fitting
from bigmodel.laws.fitting import Fit, Sets

KINDS = ("bayesian", "case", "cluster", "residual")
ENOUGH = 1e-7  # of the objective, relatively: far less than between draws
AT_BOUND = 1e-2  # share of the lowest loss below which a constant of the law may be on its way to 0


def bootstrap(
  fit: Fit, draws: int = 400, seed: int = 0, kind: str = "bayesian", clusters: np.ndarray | None = None
) -> Fit:
  """The fit with draws of its parameters.

  `bayesian` (Rubin 1981) gives every point a random weight, so none is ever missing; `case` draws points
  with replacement; `cluster` draws whole clusters, such as all evaluations of one run; `residual` keeps
  the points and draws their residuals. Each refit starts where the fit is. A fit with P parameters leaves
  residuals that are too small by sqrt(1 - P / n): random weights have a variance that is as much larger than 1.
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
    _, own = np.unique(np.arange(n) if clusters is None else clusters, return_inverse=True)
    random = rng.gamma(shape, size=(draws, own.max() + 1))
    weights = weights * (random / random.mean(axis=1, keepdims=True))[:, own]
  else:
    residuals = fit.residuals()
    errors = rng.choice(residuals - residuals.mean(), size=(draws, n)) * np.sqrt(n / max(n - len(fit.theta), 1))
    known = fit.predict(*fit.columns)
    losses = known + errors if fit.plain else known * np.exp(errors)
  return dataclasses.replace(fit, draws=refits(fit, losses, weights))


def refits(fit: Fit, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Parameters [S, P] that fit losses [S, n] with weights [S, n]."""
  draws, n = losses.shape
  if not draws:
    return np.empty((0, len(fit.theta)))
  pad = -n % fitting.PAD
  edge = lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)], mode="edge")
  columns = tuple(np.broadcast_to(edge(x), (draws, n + pad)) for x in fit.columns)
  sets = Sets(columns, edge(losses), np.pad(weights, ((0, 0), (0, pad))))
  starts = _starts(fit)
  found = fitting.solve(
    fit.law, sets, np.tile(starts, (draws, 1)), np.repeat(np.arange(draws), len(starts)), fit.how, ENOUGH
  )
  values = np.where(np.isfinite(found.value), found.value, np.inf).reshape(draws, -1)
  return found.theta.reshape(draws, len(starts), -1)[np.arange(draws), np.argmin(values, axis=1)]


def _starts(fit: Fit) -> np.ndarray:
  """The fit, and where a constant is almost 0 also others: no gradient leads away from there."""
  starts = [fit.theta]
  for i, name in enumerate(fit.law.names):
    if name in ("E", "a") and name in fit.law.linear and np.exp(fit.theta[i]) < AT_BOUND * fit.loss.min():
      for share in (0.3, 0.8):
        other = fit.theta.copy()
        other[i] = np.log(share * fit.loss.min())
        starts.append(other)
  return np.array(starts)


def profile(fit: Fit, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The least objective with one parameter held at each of some values, relative to the fit's; for each parameter.

  Where it hardly rises the points do not say the parameter: the fit lies on a ridge.
  """
  pins = [
    (fit.law.names.index(name), fit.law.theta({**fit.params, name: np.float64(value)}))
    for name, values in held.items()
    for value in values
  ]
  mask = np.array([np.arange(len(fit.theta)) == place for place, _ in pins])
  pinned = np.array([theta for _, theta in pins])
  sets = fitting.stack([(fit.columns, fit.loss, fit.weights)] * len(pins))
  found = fitting.solve(fit.law, sets, pinned, np.arange(len(pins)), fit.how, held=(mask, pinned))
  rises = iter(found.value / fitting.SCALE / max(fit.objective, 1e-300))
  return {name: np.array([next(rises) for _ in values]) for name, values in held.items()}


def ridges(fit: Fit, reach: float = 3.0, rise: float = 0.02) -> dict[str, list[float]]:
  """Parameters that may be `reach` times larger or smaller at hardly more objective; the rises at both."""
  held = {name: np.array([fit.params[name] / reach, fit.params[name] * reach]) for name in fit.law.names}
  inside = {
    name: values for name, values in held.items()
    if fit.law.bounds[name][0] < values.min() and values.max() < fit.law.bounds[name][1]
  }  # fmt: skip
  found = profile(fit, inside) if inside else {}
  return {name: (rises - 1).tolist() for name, rises in found.items() if (rises - 1).min() < rise}
