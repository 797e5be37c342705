"""Damped Newton minimisation of many small problems at once, in float64, in one program."""

import functools
from collections.abc import Callable
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.laws.law import Array
from bigmodel.types import PyTree

Objective = Callable[..., jax.Array]  # (theta [P], *rows of data) -> the value to minimise

ROUNDS = (12, 24, 48, 96, 192)  # iterations of each round; problems that have converged leave after it
TOLERANCE = 1e-8  # of the gradient, relative to the value
LANE = 64  # problems that are solved side by side: always this number, since every other would be compiled again
FIRST_DAMPING = 1.0
SETTLED = 1e-11  # a problem whose value a round lowers by less, relative to it, has converged


class Solution(NamedTuple, Generic[Array]):
  """Arrays with one row for each problem."""

  theta: Array  # [S, P]
  value: Array  # [S]
  gradient: Array  # [S], largest component


# With thousands of iterations optimisation pays, whatever level the process has set for its other programs.
@functools.partial(jax.jit, static_argnames=("objective",), compiler_options={"xla_backend_optimization_level": 3})
def minimize(
  objective: Objective, starts_SxP: jax.Array, damping_S: jax.Array, data: PyTree, iterations: int
) -> tuple[Solution[jax.Array], jax.Array]:
  """Minimises `objective(theta, *row of data)` from every row of `starts_SxP`; also returns the damping reached.

  A step solves (|H| + damping) s = -g, where |H| is the Hessian with its eigenvalues made positive. The damping falls
  after a step that lowers the value and rises after one that does not. Call this within `jax.enable_x64(True)`.
  """
  gradient, hessian = jax.grad(objective), jax.hessian(objective)

  def solve(start_P: jax.Array, damping: jax.Array, row: PyTree) -> tuple[Solution[jax.Array], jax.Array]:
    def body(_: int, carry: tuple) -> tuple:
      theta, value, damping = carry
      g = gradient(theta, *row)
      eigenvalues, vectors = jnp.linalg.eigh(hessian(theta, *row))
      new = theta - vectors @ ((vectors.T @ g) / (jnp.abs(eigenvalues) + damping))
      new_value = objective(new, *row)
      better = jnp.isfinite(new_value) & (new_value < value)
      damping = jnp.clip(jnp.where(better, damping * 0.25, damping * 8.0), 1e-14, 1e14)
      return jnp.where(better, new, theta), jnp.where(better, new_value, value), damping

    carry = (start_P, objective(start_P, *row), damping)
    theta, value, damping = jax.lax.fori_loop(0, iterations, body, carry)
    return Solution(theta, value, jnp.max(jnp.abs(gradient(theta, *row)))), damping

  return jax.vmap(solve)(starts_SxP, damping_S, data)


def settle(
  objective: Objective, starts_SxP: np.ndarray, which_S: np.ndarray, data: PyTree, settled: float = SETTLED
) -> Solution[np.ndarray]:
  """As `minimize`, in rounds, so that problems that converge early do not wait for the slowest.

  `which_S` is the row of `data` for each start. `settled` is as `SETTLED`.
  """
  count = len(starts_SxP)
  theta, value = np.array(starts_SxP, np.float64), np.full(count, np.inf)
  gradient, damping = np.full(count, np.inf), np.full(count, FIRST_DAMPING)
  active = np.arange(count)
  with jax.enable_x64(True):
    for iterations in ROUNDS:
      ended = []
      for first in range(0, len(active), LANE):
        places = active[first : first + LANE]
        filled = np.resize(places, LANE)
        rows = jax.tree.map(lambda x, filled=filled: x[which_S[filled]], data)
        solution, damped = minimize(
          objective, jnp.asarray(theta[filled]), jnp.asarray(damping[filled]), rows, iterations
        )
        new_theta, new_value, new_gradient = (np.asarray(x)[: len(places)] for x in solution)
        done = ~np.isfinite(new_value) | (new_gradient <= TOLERANCE * np.abs(new_value))
        ended.append(done | (value[places] - new_value <= settled * np.abs(new_value)))
        theta[places], value[places], gradient[places] = new_theta, new_value, new_gradient
        damping[places] = np.asarray(damped)[: len(places)]
      active = active[~np.concatenate(ended)] if ended else active
  return Solution(theta, value, gradient)
