"""The state of an optimizer before the first step, with the logical names of its arrays' axes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigmodel.models.layers.roles import Path
from bigmodel.optim.frozen import trainable
from bigmodel.optim.settings import How
from bigmodel.types import Params, PyTree


class State(NamedTuple):
  """The state of the optimizer itself, and what is kept beside it: scalars, or () where they are not kept."""

  own: PyTree
  average: Params = ()  # of the parameters, not yet divided by 1 - decay^steps
  steps: PyTree = ()  # in the average
  norm: PyTree = ()  # running average of the gradient norm, likewise not yet divided
  taken: PyTree = ()  # steps that were not skipped
  skipped: PyTree = ()  # steps that were
  skipped_in_a_row: PyTree = ()  # up to the last step


def initial_state(how: How, params: Params) -> State:
  """The state before the first step, whatever the hyperparameters. Frozen parameters have no part in it.

  Where the parameters are in boxes that name their axes, so are the arrays of the state.
  """
  raw = trainable(nn.meta.unbox(params), how.frozen)
  state = State(how.initial_transformation().init(raw))
  if how.averages:
    state = state._replace(average=jax.tree.map(jnp.zeros_like, raw), steps=jnp.int32(0))
  if how.skips:
    state = state._replace(norm=jnp.float32(0), taken=jnp.int32(0), skipped=jnp.int32(0), skipped_in_a_row=jnp.int32(0))
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  if not any(isinstance(x, nn.LogicallyPartitioned) for _, x in leaves):
    return state
  return _with_axes(state, dict(leaves))


def _with_axes(state: State, boxes: Mapping[Path, nn.LogicallyPartitioned]) -> State:
  """The state in boxes. An array belongs to the parameter whose path is a part of its own path."""

  def box(path: Path, x: jax.Array) -> nn.LogicallyPartitioned | jax.Array:
    parts = [p for p in boxes if any(path[i : i + len(p)] == p for i in range(len(path)))]
    axes = _axes(x.shape, boxes[max(parts, key=len)]) if parts else (None,) * x.ndim
    return nn.LogicallyPartitioned(x, axes) if x.ndim else x

  return jax.tree_util.tree_map_with_path(box, state)


def _axes(shape: tuple[int, ...], parameter: nn.LogicallyPartitioned) -> tuple[str | None, ...]:
  """The axes of an array of an optimizer's state: those of its parameter that are as long, in their order.

  The second axis of a square factor gets the parameter's `embed`, where the first does not have it and it divides:
  factors are as large as parameters, and `embed` is what is sharded everywhere.
  """
  left = list(zip(parameter.value.shape, parameter.names, strict=True))
  embed = dict(zip(parameter.names, parameter.value.shape, strict=True)).get("embed", 0)
  axes: list[str | None] = []
  for size in shape:
    at = next((i for i, (length, _) in enumerate(left) if length == size), None)
    square = at is None and len(axes) > 0 and size == shape[len(axes) - 1] and embed and size % embed == 0
    axes.append(left[at][1] if at is not None else "embed" if square and "embed" not in axes else None)
    left = left if at is None else left[at + 1 :]
  return tuple(axes)
