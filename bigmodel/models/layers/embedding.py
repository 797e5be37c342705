"""Tables of vectors: lookups by index, and the logits of a vocabulary.

The gradient of a row is a sum over all positions that read it. A bfloat16 sum of ones stops at 256, so these sums are
float32 for any dtype of the summands. On a mesh, the forward pass still gathers the table in the narrower dtype.

A vocabulary is padded with rows of zeros, so that meshes can shard it. These rows are never looked up and their logits
are hidden, so they get no gradients and stay zero. They are neither counted nor exported.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigmodel.models.layers import initial
from bigmodel.models.layers.attention import HIDDEN
from bigmodel.models.layers.basic import constrain, einsum_float32, gathered, is_spread, parameter, plus_bias
from bigmodel.models.layers.roles import Role, labelled

Axes = tuple[str, ...]
VOCABULARY: Axes = ("vocab", "embed")  # logical axes of padded tables
LARGE = 4096  # vocabularies of at least this size are padded to a multiple of 128


def padded(rows: int) -> int:
  """Returns the padded number of rows of a vocabulary: the next multiple of 8, or of 128 from 4,096 rows on."""
  multiple = 8 if rows < LARGE else 128
  return -(-rows // multiple) * multiple


def vocabulary(module: nn.Module, name: str, rows: int, width: int, role: Role, deviation: float) -> jax.Array:
  """Creates a float32 table [padded(rows), width] ~ N(0, deviation^2), whose padding is zero."""
  init = labelled(initial.normal(deviation, rows), VOCABULARY, role)
  return parameter(module, name, init, (padded(rows), width))


def logits(module: nn.Module, x_BxTxD: jax.Array, table_VxD: jax.Array, rows: int, bias: str = "") -> jax.Array:
  """Returns logits float32[B, T, rows] of a vocabulary, plus the bias named `bias` if given.

  If a mesh shards the vocabulary, the logits of padding come last and are `HIDDEN`, because cutting them off would move
  the others between devices. A softmax gives them no probability, and argmax and sampling never choose them.
  """
  whole_VxD = gathered(table_VxD.astype(x_BxTxD.dtype), VOCABULARY)
  logits_BxTxV = einsum_float32("btd,vd->btv", x_BxTxD, whole_VxD)
  if bias:
    logits_BxTxV = plus_bias(module, bias, logits_BxTxV, "vocab")
  if rows < len(table_VxD) and not is_spread(("vocab",)):
    return logits_BxTxV[..., :rows]
  if rows < len(table_VxD):
    logits_BxTxV = jnp.where(np.arange(len(table_VxD)) < rows, logits_BxTxV, HIDDEN)
  return constrain(logits_BxTxV, ("batch", "length", "vocab"))


def lookup(table_VxD: jax.Array, index: jax.Array, axes: Axes, dtype: DTypeLike) -> jax.Array:
  """Looks up rows of a float32 table by int index, [*index.shape, D] in `dtype`; `axes` are the table's."""
  return _lookup(table_VxD, index, axes, jnp.dtype(dtype), table_VxD.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: jax.Array, index: jax.Array, axes: Axes, dtype: np.dtype, shape: tuple[int, ...]) -> jax.Array:
  del shape
  return gathered(table.astype(dtype), axes)[index]


def _lookup_forward(
  table: jax.Array, index: jax.Array, axes: Axes, dtype: np.dtype, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  return _lookup(table, index, axes, dtype, shape), index


def _lookup_backward(
  axes: Axes, dtype: np.dtype, shape: tuple[int, ...], index: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
  del dtype
  sums = jnp.zeros(shape, jnp.float32).at[index].add(gradient.astype(jnp.float32))
  return constrain(sums, axes), None


_lookup.defvjp(_lookup_forward, _lookup_backward)
