"""Shampoo and SOAP: preconditioners of both sides of a matrix, batched over whatever axes come before its last two.

Shampoo (Gupta et al. 2018, algorithm 1) with averages in place of sums: the step is L^(-1/4) G R^(-1/4). SOAP (Vyas
et al. 2024, algorithm 3) runs Adam in the eigenbasis of L and R, which a step of power iteration follows; the first
gradient only gives a basis. Roots and bases are renewed every `interval` steps; a side longer than LONGEST is left
alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LONGEST = 4096
RIDGE = 1e-6  # of eigenvalues, relative to their mean
Transformation: Any = optax.GradientTransformation  # whose types say less than they could


class State(NamedTuple):
  count: Any
  mu: Any
  nu: Any  # SOAP: of the rotated gradient; Shampoo: zeros without size
  left: Any  # averages of G G' and G' G
  right: Any
  left_basis: Any  # SOAP: eigenvectors; Shampoo: inverse fourth roots
  right_basis: Any


def _sides(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Zeros for the statistics of both sides; a side that is left alone has one of size 1."""
  make = lambda n: jnp.zeros((*x.shape[:-2], n, n) if n <= LONGEST else (*x.shape[:-2], 1, 1), x.dtype)
  return make(x.shape[-2]), make(x.shape[-1])


def _grown(x: jax.Array, left: jax.Array, right: jax.Array, decay: Any) -> tuple[jax.Array, jax.Array]:
  mix = lambda old, new: old if old.shape[-1] == 1 != new.shape[-1] else decay * old + (1 - decay) * new
  transposed = jnp.swapaxes(x, -1, -2)
  return mix(left, x @ transposed), mix(right, transposed @ x)


def _between(left: jax.Array, x: jax.Array, right: jax.Array) -> jax.Array:
  x = x if left.shape[-1] != x.shape[-2] else left @ x
  return x if right.shape[-1] != x.shape[-1] else x @ right


def _one_by_one(function: Callable[..., Any], *arrays: jax.Array) -> Any:
  """`function` of stacked matrices; on a CPU each alone: batches of LAPACK's, at the same time, wait for each other."""
  if jax.default_backend() != "cpu" or arrays[0].ndim == 2:
    return function(*arrays)
  batch = arrays[0].shape[:-2]
  flat = [x.reshape(-1, *x.shape[-2:]) for x in arrays]
  return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), jax.lax.map(lambda own: function(*own), flat))


def _eigen(statistics: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues and eigenvectors, found for matrices of size 1."""
  n = statistics.shape[-1]
  size = jnp.maximum(jnp.trace(statistics, axis1=-2, axis2=-1) / n, 1e-30)[..., None]
  values, vectors = _one_by_one(jnp.linalg.eigh, statistics / size[..., None] + RIDGE * jnp.eye(n))
  return values * size, vectors


def _initial(params: Any, second: bool) -> State:
  zeros = lambda: jax.tree.map(jnp.zeros_like, params)
  pick = lambda i: jax.tree.map(lambda x: _sides(x)[i], params)
  nu = zeros() if second else jax.tree.map(lambda x: jnp.zeros((*x.shape[:-2], 1, 1), x.dtype), params)
  return State(jnp.int32(0), zeros(), nu, pick(0), pick(1), pick(0), pick(1))


def scale_by_shampoo(beta1: Any, beta2: Any, epsilon: Any, interval: int = 10) -> Any:
  def root(statistics: jax.Array, count: Any) -> jax.Array:
    values, vectors = _eigen(statistics / (1 - beta2**count))
    values = jnp.maximum(values, 0) + epsilon
    return (vectors * values[..., None, :] ** -0.25) @ jnp.swapaxes(vectors, -1, -2)

  def update(grads: Any, state: State, params: Any = None) -> tuple[Any, State]:
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
    grown = jax.tree.map(lambda g, a, b: _grown(g, a, b, beta2), grads, state.left, state.right)
    left, right = (jax.tree.map(lambda g, pair, i=i: pair[i], grads, grown) for i in (0, 1))
    renew = lambda: jax.tree.map(lambda s: root(s, count), (left, right))
    bases = jax.lax.cond(state.count % interval == 0, renew, lambda: (state.left_basis, state.right_basis))
    updates = jax.tree.map(lambda m, a, b: _between(a, m / (1 - beta1**count), b), mu, *bases)
    return updates, State(count, mu, state.nu, left, right, *bases)

  return Transformation(lambda params: _initial(params, second=False), update)


def scale_by_soap(beta1: Any, beta2: Any, epsilon: Any, interval: int = 10) -> Any:
  def renewed(statistics: jax.Array, basis: jax.Array, count: Any) -> jax.Array:
    """Eigenvectors, the largest eigenvalue first; later one step of power iteration from those there are."""
    first = lambda: _eigen(statistics)[1][..., ::-1]
    return jax.lax.cond(count == 0, first, lambda: _one_by_one(lambda x: jnp.linalg.qr(x)[0], statistics @ basis))

  def update(grads: Any, state: State, params: Any = None) -> tuple[Any, State]:
    del params
    steps = jnp.maximum(state.count, 1)  # that moved anything: the first only gives the first bases
    turn = lambda x, a, b: _between(jnp.swapaxes(a, -1, -2), x, b)
    back = lambda x, a, b: _between(a, x, jnp.swapaxes(b, -1, -2))
    bases = state.left_basis, state.right_basis
    rotated = jax.tree.map(turn, grads, *bases)
    mixed = lambda decay, old, new: jnp.where(state.count == 0, old, decay * old + (1 - decay) * new)
    mu = jax.tree.map(lambda m, g: mixed(beta1, m, g), state.mu, grads)
    nu = jax.tree.map(lambda v, g: mixed(beta2, v, g**2), state.nu, rotated)

    def step(m: jax.Array, v: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
      adam = turn(m, a, b) / (1 - beta1**steps) / (jnp.sqrt(v / (1 - beta2**steps)) + epsilon)
      return back(adam, a, b)

    updates = jax.tree.map(step, mu, nu, *bases)
    # The next steps' bases come after: a gradient is never seen in a basis of its own.
    grown = jax.tree.map(lambda g, a, b: _grown(g, a, b, beta2), grads, state.left, state.right)
    left, right = (jax.tree.map(lambda g, pair, i=i: pair[i], grads, grown) for i in (0, 1))
    renew = lambda: jax.tree.map(lambda s, basis: renewed(s, basis, state.count), (left, right), bases)
    bases = jax.lax.cond(state.count % interval == 0, renew, lambda: bases)
    return updates, State(state.count + 1, mu, nu, left, right, *bases)

  return Transformation(lambda params: _initial(params, second=True), update)
