"""Runs a stack of blocks: unrolled, scanned, or as a pipeline, with or without rematerialization.

All variants have the signature of `models.layers.block.RunBlocks` and compute the same function.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel.config import Config
from bigmodel.models.layers.basic import gathering_again
from bigmodel.models.layers.block import BlockFunction, RunBlocks, unrolled
from bigmodel.models.layers.experts import PRODUCTS, Auxiliary
from bigmodel.parallel.logical_axes import BATCH, rules
from bigmodel.parallel.sizes import microbatches
from bigmodel.types import Params

POLICIES = {
  "full": None,
  # All products with parameters. Products of experts have a batch dimension, so they are selected by name.
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(PRODUCTS),
  ),
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["block_input"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


def choose(config: Config, mesh: Mesh) -> RunBlocks:
  """Returns the function that runs the blocks as `config.parallel` requires on this mesh."""
  policy, in_pieces = config.parallel.remat, stored_in_pieces(config, mesh.shape)
  run = scanned if is_scanned(config, mesh.shape) else unrolled
  stages = mesh.shape["pipeline"]
  if stages > 1:
    run = pipelined(run, mesh, microbatches(config, stages))
  if policy == "none" and in_pieces:
    return lambda block, stacked, x: run(gathered_twice(block), stacked, x)
  return lambda block, stacked, x: run(remat(block, policy), stacked, x)


def is_scanned(config: Config, sizes: Mapping[str, int]) -> bool:
  """Whether the layers run as one loop on a mesh of these sizes: if `scan` is set, or if weights are sharded.

  Without a loop, the compiler may gather the weights of all layers, or reduce their gradients, at the same time. Then
  the unsharded arrays of all layers are in memory together, even with rematerialization.
  """
  return config.parallel.scan or stored_in_pieces(config, sizes)


def stored_in_pieces(config: Config, sizes: Mapping[str, int]) -> bool:
  """Whether weights are gathered before products, because their axis `embed` is sharded."""
  along = [axes or () for name, axes in rules(config, sizes) if name == "embed"]
  return any(sizes[axis] > 1 for axes in along for axis in axes)


def remat(block: BlockFunction, policy: str) -> BlockFunction:
  """Returns the block with rematerialization: the backward pass recomputes what `policy` does not keep."""
  if policy == "none":
    return block

  def named(params: Params, x: jax.Array) -> tuple[jax.Array, Auxiliary]:
    return block(params, checkpoint_name(x, "block_input"))

  return jax.checkpoint(named, policy=POLICIES[policy])


def gathered_twice(block: BlockFunction) -> BlockFunction:
  """Returns the block, which keeps everything for the backward pass except gathered weights.

  Each device keeps its shard of the weights, and the backward pass gathers them again.
  """

  def gathering(params: Params, x: jax.Array) -> tuple[jax.Array, Auxiliary]:
    with gathering_again():
      return block(params, x)

  # The compiler would merge both gathers and keep the result; `checkpoint` prevents that.
  return jax.checkpoint(gathering, policy=jax.checkpoint_policies.everything_saveable)


def scanned(block: BlockFunction, stacked: Params, x_BxTxD: jax.Array) -> tuple[jax.Array, Auxiliary]:
  """Runs the blocks as one loop, which compiles once for all layers; computes the same as `unrolled`."""
  x_BxTxD, auxiliary_N = jax.lax.scan(lambda x, params: block(params, x), x_BxTxD, stacked)
  return x_BxTxD, jax.tree.map(jnp.sum, auxiliary_N)


def pipelined(run_stage: RunBlocks, mesh: Mesh, pieces: int) -> RunBlocks:
  """Returns a function that runs the blocks as a pipeline of `pieces` microbatches (GPipe, Huang et al. 2019).

  All stages compute at the same time, each on a different microbatch. A collective permute shifts the results to the
  next stage. Each stage is idle in stages - 1 of the pieces + stages - 1 turns.
  """
  stages = mesh.shape["pipeline"]

  def spread(first: str | None, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(first, BATCH, "sequence")))

  on_stages = functools.partial(spread, "pipeline")

  def run(block: BlockFunction, stacked: Params, x_BxTxD: jax.Array) -> tuple[jax.Array, Auxiliary]:
    B, T, D = x_BxTxD.shape
    params_SxL = jax.tree.map(lambda p: p.reshape(stages, p.shape[0] // stages, *p.shape[1:]), stacked)
    stage: Callable = jax.vmap(lambda p, x: run_stage(block, p, x), spmd_axis_name="pipeline")
    # Row b goes to microbatch b % pieces, so that no row leaves its device.
    pieces_PxBxTxD = x_BxTxD.reshape(B // pieces, pieces, T, D).swapaxes(0, 1)
    idle = jnp.zeros((stages - 1, *pieces_PxBxTxD.shape[1:]), x_BxTxD.dtype)

    def turn(
      previous_SxBxTxD: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, Auxiliary]]:
      entering_BxTxD, now = inputs
      shifted = jnp.roll(previous_SxBxTxD, 1, axis=0).at[0].set(entering_BxTxD)
      out_SxBxTxD, auxiliary_S = stage(params_SxL, on_stages(shifted))
      piece_S = now - jnp.arange(stages)
      working_S = (piece_S >= 0) & (piece_S < pieces)
      # Without this constraint, the backward pass gathers the gradients of the whole batch in every turn.
      leaves_BxTxD = spread(None, out_SxBxTxD[-1:])[0]
      auxiliary = jax.tree.map(lambda x_S: jnp.sum(jnp.where(working_S, x_S, 0.0)), auxiliary_S)
      return on_stages(out_SxBxTxD), (leaves_BxTxD, auxiliary)

    start = on_stages(jnp.zeros((stages, *pieces_PxBxTxD.shape[1:]), x_BxTxD.dtype))
    entering = jnp.concatenate([pieces_PxBxTxD, idle])
    _, (left_QxBxTxD, auxiliary_Q) = jax.lax.scan(turn, start, (entering, jnp.arange(pieces + stages - 1)))
    out_BxTxD = left_QxBxTxD[stages - 1 :].swapaxes(0, 1).reshape(B, T, D)
    return out_BxTxD, jax.tree.map(lambda x_Q: jnp.sum(x_Q) / pieces, auxiliary_Q)

  return run
