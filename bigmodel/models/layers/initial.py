"""Initial values ~ N(0, deviation^2), equal to flax's from the same keys, in a program that compiles much faster.

Code that draws random numbers takes longest to compile, and a model has it once per parameter. `drawn` traces the
initializers only to learn where each parameter's numbers come from, then draws all in one loop over equal pieces.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jax.typing import DTypeLike

from bigmodel.types import Params

PIECE = 4096  # random numbers drawn at once
WORDS = 4  # words of a place: the key (2), the bits of the deviation, and the count of numbers before zeros

_PLACES = [False]  # whether initializers return places (uint32) instead of numbers (float32)


def normal(deviation: float, rows: int | None = None) -> Callable[..., jax.Array]:
  """Returns an initializer. Within `drawn` it returns the place of its numbers, unless there are fewer than `WORDS`.

  With `rows`, rows past these are zeros, and the first rows equal those of an array without padding.
  """

  def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    size, key_words = math.prod(shape), jax.random.key_data(key)
    real = shape if rows is None else (rows, *shape[1:])
    # Whether `_piece` computes the same random numbers as this key's generator.
    counted = key_words.shape == (2,) and jax.threefry_partitionable.value
    if not _PLACES[0] or size < WORDS or not counted:
      numbers = nn.initializers.normal(deviation)(key, real, dtype)
      return jnp.pad(numbers, [(0, n - m) for n, m in zip(shape, real, strict=True)]) if real != shape else numbers
    bits = np.array([deviation], np.float32).view(np.uint32)
    words = jnp.concatenate([key_words, bits, np.array([math.prod(real)], np.uint32)])
    return jnp.zeros(size, jnp.uint32).at[:WORDS].set(words).reshape(shape)

  return init


@contextlib.contextmanager
def _places() -> Iterator[None]:
  before, _PLACES[0] = _PLACES[0], True
  try:
    yield
  finally:
    _PLACES[0] = before


def drawn(init: Callable[..., Mapping[str, Params]], key: jax.Array, *example: jax.Array) -> Mapping[str, Params]:
  """Returns exactly what `init(key, *example)` returns."""
  with _places():
    tree = init(key, *example)
  leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  places = [i for i, x in enumerate(leaves) if nn.meta.unbox(x).dtype == jnp.uint32]
  if not places:
    return tree
  keys, starts, spans = [], [], []
  for i in places:
    x = nn.meta.unbox(leaves[i])
    layers = x.shape[0] if leaves[i].names[:1] == ("layers",) else 1
    size = x.size // layers
    pieces = -(-size // PIECE)
    words = x.reshape(layers, size)[:, :WORDS]
    keys.append(jnp.repeat(words, pieces, axis=0))
    starts += [PIECE * piece for _ in range(layers) for piece in range(pieces)]
    spans.append((layers, pieces, size))
  numbers = jax.lax.map(_piece, (jnp.concatenate(keys), np.array(starts, np.uint32)))
  at = 0
  for i, (layers, pieces, size) in zip(places, spans, strict=True):
    values = jax.lax.slice_in_dim(numbers, at, at + layers * pieces).reshape(layers, pieces * PIECE)[:, :size]
    leaves[i] = leaves[i].replace_boxed(values.reshape(nn.meta.unbox(leaves[i]).shape))
    at += layers * pieces
  return jax.tree.unflatten(structure, leaves)


def _piece(place: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Draws a piece of a parameter's numbers, equal to those of `jax.random.normal` times the deviation."""
  words, start = place
  counts = start + jnp.arange(PIECE, dtype=jnp.uint32)
  first, second = jnp.split(threefry_2x32(words[:2], jnp.concatenate([jnp.zeros_like(counts), counts])), 2)
  bits = jax.lax.bitwise_or((first ^ second) >> 9, np.float32(1).view(np.uint32))
  low = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jax.lax.bitcast_convert_type(bits, jnp.float32) - np.float32(1)
  uniform = jnp.maximum(low, uniform * (np.float32(1) - low) + low)
  numbers = np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform) * jax.lax.bitcast_convert_type(words[2], jnp.float32)
  return jnp.where(counts < words[3], numbers, 0)
