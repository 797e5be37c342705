"""Damped Newton minimisation of many small problems at once, in float64, in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = (12, 24, 48, 96, 192)  # iterations, after each of which those go on that have not converged
TOLERANCE = 1e-8  # of the gradient, relative to the value
LANE = 64  # problems that are solved side by side: always as many, since each number is compiled anew
FIRST_DAMPING = 1.0
SETTLED = 1e-11  # a round that lowers the value by less, relative to it, was the last


class Solution(NamedTuple):
  """Arrays with one row a problem."""

  theta: Any  # [S, P]
  value: Any  # [S]
  gradient: Any  # [S], largest component


# Thousands of iterations are worth the compiler's time, whatever it was told.
@functools.partial(jax.jit, static_argnames=("objective",), compiler_options={"xla_backend_optimization_level": 3})
def minimize(
  objective: Callable[..., jax.Array], starts_SxP: jax.Array, damping_S: jax.Array, data: Any, iterations: Any
) -> tuple[Solution, jax.Array]:
  """Minimises `objective(theta, *row of data)` from every row of `starts_SxP`; also returns the damping reached.

  A step solves (|H| + damping) s = -g with |H| the Hessian with its eigenvalues made
  positive; damping falls after a step that helped and rises after one that did not.
  Call it within `jax.enable_x64(True)`.
  """
  gradient, hessian = jax.grad(objective), jax.hessian(objective)

  def solve(start_P: jax.Array, damping: jax.Array, own: Any) -> tuple[Solution, jax.Array]:
    def body(_: int, carry: tuple) -> tuple:
      theta, value, damping = carry
      g = gradient(theta, *own)
      eigenvalues, vectors = jnp.linalg.eigh(hessian(theta, *own))
      new = theta - vectors @ ((vectors.T @ g) / (jnp.abs(eigenvalues) + damping))
      new_value = objective(new, *own)
      better = jnp.isfinite(new_value) & (new_value < value)
      damping = jnp.clip(jnp.where(better, damping * 0.25, damping * 8.0), 1e-14, 1e14)
      return jnp.where(better, new, theta), jnp.where(better, new_value, value), damping

    carry = (start_P, objective(start_P, *own), damping)
    theta, value, damping = jax.lax.fori_loop(0, iterations, body, carry)
    return Solution(theta, value, jnp.max(jnp.abs(gradient(theta, *own)))), damping

  return jax.vmap(solve)(starts_SxP, damping_S, data)


def settle(
  objective: Callable[..., jax.Array], starts_SxP: np.ndarray, which_S: np.ndarray, data: Any, settled: float = SETTLED
) -> Solution:
  """`minimize` of problems whose rows of `data` `which_S` says, in rounds, so that none waits for the slowest."""
  rows = len(starts_SxP)
  theta, value = np.array(starts_SxP, np.float64), np.full(rows, np.inf)
  gradient, damping = np.full(rows, np.inf), np.full(rows, FIRST_DAMPING)
  active = np.arange(rows)
  with jax.enable_x64(True):
    for iterations in ROUNDS:
      ended = []
      for first in range(0, len(active), LANE):
        mine = active[first : first + LANE]
        at = np.resize(mine, LANE)
        own = jax.tree.map(lambda x, at=at: x[which_S[at]], data)
        found, damped = minimize(objective, theta[at], damping[at], own, iterations)
        new_theta, new_value, new_gradient = (np.asarray(x)[: len(mine)] for x in found)
        done = ~np.isfinite(new_value) | (new_gradient <= TOLERANCE * np.abs(new_value))
        ended.append(done | (value[mine] - new_value <= settled * np.abs(new_value)))
        theta[mine], value[mine], gradient[mine] = new_theta, new_value, new_gradient
        damping[mine] = np.asarray(damped)[: len(mine)]
      active = active[~np.concatenate(ended)] if ended else active
  return Solution(theta, value, gradient)
