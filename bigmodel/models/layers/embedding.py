"""Tables of vectors that are looked up by index.

A row's gradient is a sum over all places that read it. In bfloat16 a sum of ones stops at 256, so these sums are
float32, whatever the dtype of what is summed. On a mesh the forward pass still gathers the table in the narrower dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.models.layers.basic import constrain, gathered

Axes = tuple[str, ...]


def lookup(table_VxD: jax.Array, index: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
  """Rows of a float32 table by their int index, [*index.shape, D] in `dtype`; `axes` are the table's."""
  return _lookup(table_VxD, index, axes, jnp.dtype(dtype), table_VxD.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: jax.Array, index: jax.Array, axes: Axes, dtype: Any, shape: tuple[int, ...]) -> jax.Array:
  del shape
  return gathered(table.astype(dtype), axes)[index]


def _lookup_forward(table: jax.Array, index: jax.Array, *static: Any) -> tuple[jax.Array, jax.Array]:
  return _lookup(table, index, *static), index


def _lookup_backward(
  axes: Axes, dtype: Any, shape: tuple[int, ...], index: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
  del dtype
  sums = jnp.zeros(shape, jnp.float32).at[index].add(gradient.astype(jnp.float32))
  return constrain(sums, axes), None


_lookup.defvjp(_lookup_forward, _lookup_backward)
