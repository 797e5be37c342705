"""Damped Newton minimisation of many small problems at once, in float64, in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Solution(NamedTuple):
  """Arrays with one row a problem."""

  theta: Any  # [S, P]
  value: Any  # [S]
  gradient: Any  # [S], largest component


@functools.partial(jax.jit, static_argnames=("objective", "iterations"))
def minimize(
  objective: Callable[..., jax.Array], starts_SxP: jax.Array, *arguments: Any, iterations: int = 200
) -> Solution:
  """Minimises `objective(theta, *arguments)` from every row of `starts_SxP`.

  Each argument's leading axis runs over the problems too. A step solves
  (|H| + damping) s = -g with |H| the Hessian with its eigenvalues made positive;
  damping falls after a step that helped and rises after one that did not.
  Call it within `jax.enable_x64(True)`.
  """
  gradient, hessian = jax.grad(objective), jax.hessian(objective)

  def solve(start_P: jax.Array, *own: Any) -> Solution:
    def body(_: int, carry: tuple) -> tuple:
      theta, value, damping = carry
      g = gradient(theta, *own)
      eigenvalues, vectors = jnp.linalg.eigh(hessian(theta, *own))
      curvature = jnp.abs(eigenvalues) + damping
      step = -vectors @ ((vectors.T @ g) / curvature)
      new = theta + step
      new_value = objective(new, *own)
      better = jnp.isfinite(new_value) & (new_value < value)
      theta = jnp.where(better, new, theta)
      damping = jnp.clip(jnp.where(better, damping * 0.25, damping * 8.0), 1e-14, 1e14)
      return theta, jnp.where(better, new_value, value), damping

    first = objective(start_P, *own)
    scale = jnp.abs(first) + 1e-12
    theta, value, _ = jax.lax.fori_loop(0, iterations, body, (start_P, first, scale))
    return Solution(theta, value, jnp.max(jnp.abs(gradient(theta, *own))))

  return jax.vmap(solve)(starts_SxP, *arguments)
