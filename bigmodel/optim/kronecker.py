"""Shampoo and SOAP: preconditioners of both sides of a matrix, batched over the axes before its last two.

Both keep averages L of G G' and R of G' G, where G is the gradient. A side longer than LONGEST has no preconditioner;
where both sides are longer, the parameter takes Adam's step.

Shampoo (Gupta et al. 2018, algorithm 1, with averages in place of sums) turns Adam's momentum M into
L^(-1/4) M R^(-1/4), or with one preconditioned side into L^(-1/2) M: the exponent is -1 / (2 * sides) (their section
4), so that the direction never depends on the scale of the gradient. Its length is that of Adam's step for the same
matrix. This "grafting" (Agarwal et al. 2020; Anil et al. 2020, section 5; Shi et al. 2023, section 2.4.2) makes the
size of a step independent of outdated roots and of statistics without full rank, and lets Shampoo use Adam's learning
rate. Roots have a ridge relative to the largest eigenvalue, as in Anil et al. They are computed at each of the first
`interval` steps, while few gradients span few directions, and every `interval` steps afterwards.

SOAP (Vyas et al. 2024, algorithm 3) runs Adam in the eigenbasis of L and R, which is updated by one step of power
iteration every `interval` steps. The first gradient only gives a basis, so the first step is zero. Rotated entries that
are smaller than float32 resolves stay small: dividing them by their size would turn rounding errors into full steps.

Products are computed at the highest precision, because roots and eigenvectors magnify rounding errors.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from bigmodel.optim.traced import Number
from bigmodel.types import Params, PyTree

LONGEST = 4096
RIDGE = 1e-6  # of eigenvalues, relative to the largest: about the resolution of float32
RESOLVED = 1e-6  # of rotated gradients, relative to the largest entry of their matrix: the same
TINY = 1e-30  # keeps quotients of zeros finite
Result = TypeVar("Result", jax.Array, tuple[jax.Array, jax.Array])


class State(NamedTuple):
  """Trees like the parameters, besides the count of steps."""

  count: PyTree  # int32; jax.Array would contradict tuple.count
  mu: Params  # averages of the gradient
  nu: Params  # averages of the squared gradient; SOAP: of the rotated gradient
  left: PyTree  # averages of G G'
  right: PyTree  # averages of G' G
  left_basis: PyTree  # SOAP: eigenvectors; Shampoo: inverse roots
  right_basis: PyTree


def _sides(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Zeros for the statistics of both sides, [n, n]; [1, 1] for a side without a preconditioner."""

  def make(n: int) -> jax.Array:
    return jnp.zeros((*x.shape[:-2], n, n) if n <= LONGEST else (*x.shape[:-2], 1, 1), x.dtype)

  return make(x.shape[-2]), make(x.shape[-1])


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _averaged(x: jax.Array, left: jax.Array, right: jax.Array, decay: Number) -> tuple[jax.Array, jax.Array]:
  """The statistics of both sides with those of a gradient `x` averaged in."""

  def mix(old: jax.Array, new: jax.Array) -> jax.Array:
    return old if old.shape[-1] == 1 != new.shape[-1] else decay * old + (1 - decay) * new

  transposed = jnp.swapaxes(x, -1, -2)
  return mix(left, _product(x, transposed)), mix(right, _product(transposed, x))


def _between(left: jax.Array, x: jax.Array, right: jax.Array) -> jax.Array:
  """left x right, without the factors of sides that have no preconditioner."""
  x = x if left.shape[-1] != x.shape[-2] else _product(left, x)
  return x if right.shape[-1] != x.shape[-1] else _product(x, right)


def _sides_used(x: jax.Array, left: jax.Array, right: jax.Array) -> int:
  """How many sides of `x` have a preconditioner."""
  return (left.shape[-1] == x.shape[-2]) + (right.shape[-1] == x.shape[-1])


def _one_by_one(function: Callable[[jax.Array], Result], array: jax.Array) -> Result:
  """`function` of stacked matrices; on a CPU of one after another, because simultaneous LAPACK calls can deadlock."""
  if jax.default_backend() != "cpu" or array.ndim == 2:
    return function(array)
  batch, flat = array.shape[:-2], array.reshape(-1, *array.shape[-2:])
  return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), jax.lax.map(function, flat))


def _eigen(statistics: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues, ascending and divided by their mean, and eigenvectors."""
  n = statistics.shape[-1]
  mean = jnp.maximum(jnp.trace(statistics, axis1=-2, axis2=-1) / n, TINY)[..., None, None]
  return _one_by_one(jnp.linalg.eigh, statistics / mean)


def _inverse_root(statistics: jax.Array, exponent: float) -> jax.Array:
  """`statistics` to the power of `-exponent`, up to a factor, which does not matter as the step's length is grafted."""
  values, vectors = _eigen(statistics)
  largest = jnp.maximum(values[..., -1:], 1.0)  # less than 1 only where the statistics are zero
  values = jnp.maximum(values, 0) + RIDGE * largest
  return _product(vectors * values[..., None, :] ** -exponent, jnp.swapaxes(vectors, -1, -2))


def _length(x: jax.Array) -> jax.Array:
  """The Frobenius norm of each matrix."""
  return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1), keepdims=True))


def _initial(params: Params) -> State:
  def zeros() -> Params:
    return jax.tree.map(jnp.zeros_like, params)

  def of_side(i: int) -> PyTree:
    return jax.tree.map(lambda x: _sides(x)[i], params)

  return State(jnp.int32(0), zeros(), zeros(), of_side(0), of_side(1), of_side(0), of_side(1))


def scale_by_shampoo(beta1: Number, beta2: Number, epsilon: Number, interval: int = 10) -> optax.GradientTransformation:
  """Shampoo's direction, with roots computed every `interval` steps."""

  def update(updates: PyTree, state: PyTree, params: Params = None) -> tuple[PyTree, State]:
    del params
    grads = updates
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
    nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, state.nu, grads)
    grown = jax.tree.map(lambda g, a, b: _averaged(g, a, b, beta2), grads, state.left, state.right)
    left, right = (jax.tree.map(lambda g, pair, i=i: pair[i], grads, grown) for i in (0, 1))

    def roots(g: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
      exponent = 1 / (2 * max(1, _sides_used(g, a, b)))

      def root(side: jax.Array, size: int) -> jax.Array:
        return _inverse_root(side, exponent) if side.shape[-1] == size else side

      return root(a, g.shape[-2]), root(b, g.shape[-1])

    def renewed() -> tuple[PyTree, PyTree]:
      pairs = jax.tree.map(roots, grads, left, right)
      of_left, of_right = (jax.tree.map(lambda g, pair, i=i: pair[i], grads, pairs) for i in (0, 1))
      return of_left, of_right

    renew = (state.count < interval) | (state.count % interval == 0)
    bases = jax.lax.cond(renew, renewed, lambda: (state.left_basis, state.right_basis))

    def step(m: jax.Array, v: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
      adam = m / (1 - beta1**count) / (jnp.sqrt(v / (1 - beta2**count)) + epsilon)
      if not _sides_used(m, a, b):
        return adam
      # Momentum of length 1, so that squares of small gradients do not underflow.
      direction = _between(a, m / jnp.maximum(_length(m), TINY), b)
      return direction * (_length(adam) / jnp.maximum(_length(direction), TINY))

    return jax.tree.map(step, mu, nu, *bases), State(count, mu, nu, left, right, *bases)

  return optax.GradientTransformation(_initial, update)


def _renewed(statistics: jax.Array, basis: jax.Array, count: jax.Array) -> jax.Array:
  """SOAP's eigenvectors, the largest eigenvalue first; after the first step by one step of power iteration."""

  def first() -> jax.Array:
    return _eigen(statistics)[1][..., ::-1]

  def later() -> jax.Array:
    return _one_by_one(lambda x: jnp.linalg.qr(x)[0], _product(statistics, basis))

  return jax.lax.cond(count == 0, first, later)


def _turned(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """A matrix in the bases of its sides."""
  return _between(jnp.swapaxes(a, -1, -2), x, b)


def _turned_back(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  return _between(a, x, jnp.swapaxes(b, -1, -2))


def scale_by_soap(beta1: Number, beta2: Number, epsilon: Number, interval: int = 10) -> optax.GradientTransformation:
  """SOAP's direction, with bases updated every `interval` steps."""

  def update(updates: PyTree, state: PyTree, params: Params = None) -> tuple[PyTree, State]:
    del params
    grads = updates
    steps = jnp.maximum(state.count, 1)  # without the first step, which only gives the first bases
    bases = state.left_basis, state.right_basis
    rotated = jax.tree.map(_turned, grads, *bases)

    def mixed(decay: Number, old: jax.Array, new: jax.Array) -> jax.Array:
      return jnp.where(state.count == 0, old, decay * old + (1 - decay) * new)

    mu = jax.tree.map(lambda m, g: mixed(beta1, m, g), state.mu, grads)
    nu = jax.tree.map(lambda v, g: mixed(beta2, v, g**2), state.nu, rotated)

    def step(m: jax.Array, v: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
      size = jnp.sqrt(v / (1 - beta2**steps))
      if _sides_used(m, a, b):
        size = jnp.maximum(size, RESOLVED * jnp.max(size, axis=(-2, -1), keepdims=True))
      return _turned_back(_turned(m, a, b) / (1 - beta1**steps) / (size + epsilon), a, b)

    direction = jax.tree.map(step, mu, nu, *bases)
    # Bases are updated after the step, so that a gradient is never rotated into a basis computed from it.
    grown = jax.tree.map(lambda g, a, b: _averaged(g, a, b, beta2), grads, state.left, state.right)
    left, right = (jax.tree.map(lambda g, pair, i=i: pair[i], grads, grown) for i in (0, 1))

    def renew() -> tuple[PyTree, PyTree]:
      return jax.tree.map(lambda s, basis: _renewed(s, basis, state.count), (left, right), bases)

    bases = jax.lax.cond(state.count % interval == 0, renew, lambda: bases)
    return direction, State(state.count + 1, mu, nu, left, right, *bases)

  return optax.GradientTransformation(_initial, update)
