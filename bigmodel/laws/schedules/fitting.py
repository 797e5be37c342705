"""Fits a law of the schedule to the rows of several curves at once, as its authors do: Huber's loss of logs.

Every start of the law's grid is evaluated with its linear parameters solved for. The best of them are improved by
Levenberg and Marquardt's method on weights that make least squares of Huber's loss.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import fitting
from bigmodel.laws.law import Law
from bigmodel.laws.schedules.sums import Sums

DELTA = 1e-3  # of Huber's loss
STARTS = 3  # of the grid that are improved
ROUNDS = 200  # at most, of each
SETTLED = 1e-7  # relative fall of the objective below which ...
PATIENCE = 3  # ... so many rounds in a row have converged
LEAST_ROWS = 64  # rows and terms are padded to a multiple, so that few programs are compiled
ROWS = 120  # on which starts are compared


class Estimate(NamedTuple):
  theta: np.ndarray  # [P]
  objective: float
  reached: int  # how many of the starts that were improved reached it


def columns(law: Law, sums: Sums) -> tuple[np.ndarray, ...]:
  return tuple(getattr(sums, name) for name in law.columns)


def predict(law: Law, theta: np.ndarray, sums: Sums) -> np.ndarray:
  """Losses [R] for one theta [P], or [S, R] for many [S, P]."""
  count = len(sums)
  padded = sums.padded(_power_of_two(count), _power_of_two(sums.fall.shape[1]))
  with jax.enable_x64(True):
    values = np.asarray(_predict(law, jnp.atleast_2d(jnp.asarray(theta)), columns(law, padded)))[:, :count]
  return values if np.ndim(theta) > 1 else values[0]


def _multiple(count: int) -> int:
  return -(-count // LEAST_ROWS) * LEAST_ROWS


def _power_of_two(count: int) -> int:
  return max(LEAST_ROWS, 1 << (count - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("law",))
def _predict(law: Law, theta_SxP: jax.Array, columns: tuple[jax.Array, ...]) -> jax.Array:
  return jax.lax.map(lambda theta: law.predict(theta, columns), theta_SxP)


@functools.partial(jax.jit, static_argnames=("law",), compiler_options={"xla_backend_optimization_level": 3})
def _improve(
  law: Law,
  thetas_SxP: jax.Array,
  columns: tuple[jax.Array, ...],
  log_loss_R: jax.Array,
  weights_R: jax.Array,
  delta: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`(theta [S, P], objective [S])` from every start."""

  def residuals(theta: jax.Array) -> jax.Array:
    return jnp.log(law.predict(theta, columns)) - log_loss_R

  def objective(residual: jax.Array) -> jax.Array:
    size = jnp.abs(residual)
    each = jnp.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))
    return jnp.sum(jnp.where(weights_R > 0, weights_R * each, 0.0))

  def one(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    def go_on(carry: tuple) -> jax.Array:
      *_, still, rounds = carry
      return (still < PATIENCE) & (rounds < ROUNDS)

    def body(carry: tuple) -> tuple:
      theta, residual, value, damping, still, rounds = carry
      jacobian = jax.jacfwd(residuals)(theta)
      weights = weights_R * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(residual), 1e-300))
      weighted = jnp.where(weights_R[:, None] > 0, jacobian * weights[:, None], 0.0)
      curvature = weighted.T @ jacobian
      gradient = weighted.T @ residual
      scale = jnp.diag(curvature) + 1e-12 * jnp.trace(curvature) + 1e-300
      step = jnp.linalg.solve(curvature + damping * jnp.diag(scale), gradient)
      new = theta - jnp.clip(step, -2.0, 2.0)
      new_residual = residuals(new)
      new_value = objective(new_residual)
      better = new_value < value
      still = jnp.where(better & (value - new_value > SETTLED * value), 0, still + 1)
      damping = jnp.clip(jnp.where(better, damping * 0.2, damping * 6.0), 1e-12, 1e12)
      still = jnp.where(~better & (damping < 1e6), still - 1, still)
      theta, residual, value = (
        jnp.where(better, a, b) for a, b in ((new, theta), (new_residual, residual), (new_value, value))
      )
      return theta, residual, value, damping, still, rounds + 1

    first = residuals(theta)
    theta, _, value, *_ = jax.lax.while_loop(go_on, body, (theta, first, objective(first), 1e-2, 0, 0))
    return theta, value

  return jax.lax.map(one, thetas_SxP)


def starts(law: Law, sums: Sums, loss: np.ndarray, weights: np.ndarray, count: int = STARTS) -> np.ndarray:
  """The best starts [count, P] of the law's grid for these rows, with the linear parameters solved for."""
  rows = np.flatnonzero(weights > 0)
  rows = rows[np.linspace(0, len(rows) - 1, ROWS).astype(int)]  # always as many, so that one program serves all
  few, y, root = sums.take(rows), loss[rows], np.sqrt(weights[rows])
  grid = law.starts()
  if not law.linear:
    error = np.sum(np.abs(np.log(predict(law, grid, few) / y)) * root, axis=1)
    return grid[np.argsort(error, kind="stable")[:count]]
  places = [law.names.index(name) for name in law.linear]
  basis = []
  for place in places:
    only = grid.copy()
    only[:, places] = -np.inf
    only[:, place] = 0.0
    basis.append(predict(law, only, few) * root / y)
  basis = np.stack(basis, axis=-1)
  size = np.sqrt(np.sum(basis**2, axis=1)) + 1e-300
  solved = fitting.non_negative(basis / size[:, None], root) / size
  grid[:, places] = np.log(solved)
  error = np.sum(np.abs(np.einsum("snk,sk->sn", basis, solved) - root), axis=1)
  return np.resize(grid[np.argsort(error, kind="stable")[:count]], (count, len(law.names)))


def fit(
  law: Law,
  sums: Sums,
  loss: np.ndarray,
  weights: np.ndarray,
  delta: float = DELTA,
  first: np.ndarray | None = None,
) -> Estimate:
  """The best parameters for rows with positive weights, from the starts `first` [S, P] or those of the law's grid.

  Raises `UserError` if no start gives a finite objective.
  """
  first = starts(law, sums, loss, weights) if first is None else first
  count = _multiple(len(sums))
  padded = sums.padded(count, _multiple(sums.fall.shape[1]))
  log_loss = np.pad(np.log(loss), (0, count - len(loss)), mode="edge")
  weighted = np.pad(np.asarray(weights, np.float64), (0, count - len(loss)))
  with jax.enable_x64(True):
    thetas, values = _improve(law, jnp.asarray(first), columns(law, padded), log_loss, weighted, float(delta))
  thetas, values = np.asarray(thetas), np.asarray(values)
  values = np.where(np.isfinite(values), values, np.inf)
  best = int(np.argmin(values))
  if not np.isfinite(values[best]):
    raise UserError(f"law {law.name}: no start gives finite losses for these curves")
  return Estimate(thetas[best], float(values[best]), int(np.sum(values <= values[best] * (1 + 1e-4))))
