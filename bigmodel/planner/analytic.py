"""Estimates a step by arithmetic: bytes on a device, collectives and their time, without compiling.

State is counted exactly, from shapes and sharding rules. Activations are those of the
layers that the backward pass keeps, plus what one layer and the loss need at their
largest. Tests compare the sum with the compiler's.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from bigmodel import data, models, optim, parallel, tasks
from bigmodel.config import Config, digest, flatten
from bigmodel.hardware import Chip
from bigmodel.models.layers.attention import Attend
from bigmodel.models.layers.block import BlockFunction, RunBlocks, unrolled
from bigmodel.models.layers.embedding import padded
from bigmodel.models.layers.experts import Auxiliary
from bigmodel.models.registry.protocol import Supplied
from bigmodel.parallel import blocks, kernels
from bigmodel.planner import liveness, traffic
from bigmodel.train.step import applied
from bigmodel.types import Params, PyTree

EFFICIENCY = 0.75  # share of the peak FLOP/s that large dense models reach if nothing else limits them


@dataclasses.dataclass(frozen=True)
class StepEstimate:
  """One training step of one device, by arithmetic."""

  collectives: list[traffic.CollectiveCost]
  bubble: float  # the share of its time that a stage of a pipeline is idle
  argument_bytes: float  # parameters, optimizer state and rows; 0 without memory
  peak_bytes: float
  parts: dict[str, float]  # bytes by purpose
  # Only compiled steps have these.
  cycle_seconds: None = None
  refused: None = None


def estimate(config: Config, sizes: dict[str, int], chip: Chip | None, memory: bool = True) -> StepEstimate:
  """One step of a run on a mesh of these sizes. The estimate of memory takes most of the time."""
  collectives, idle = traffic.collectives(config, sizes, chip), bubble(config, sizes)
  if not memory:
    return StepEstimate(collectives, idle, 0.0, 0.0, {})
  state, parts = state_bytes(config, sizes), activation_bytes(config, sizes, chip)
  batch = jax.tree.leaves(tasks.batch_shape(config, config.train.batch_size))
  rows = sum(4 * x.size for x in batch) / math.prod(sizes[axis] for axis in parallel.BATCH)
  arguments = state["parameters"] + (0 if config.parallel.offload == "optimizer" else state["optimizer"]) + rows
  return StepEstimate(collectives, idle, arguments, arguments + sum(parts.values()), {**state, **parts})


def bubble(config: Config, sizes: dict[str, int]) -> float:
  """The share of its time that a stage of a pipeline is idle."""
  stages, pieces = sizes["pipeline"], parallel.microbatches(config, sizes["pipeline"])
  return (stages - 1) / (pieces + stages - 1)


def state_bytes(config: Config, sizes: dict[str, int]) -> dict[str, float]:
  """Exact bytes of parameters and optimizer state on one device."""
  boxed = _initial(config)
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), parallel.rules(config, sizes))
  local_bytes = functools.partial(parallel.local_bytes, sizes=sizes)
  params, moments = jax.tree.map(local_bytes, nn.meta.unbox(boxed), specs)
  return {"parameters": sum(jax.tree.leaves(params)), "optimizer": sum(jax.tree.leaves(moments))}


def run_bytes(config: Config) -> int:
  """Exact bytes of the parameters and the optimizer state of one run, on all devices together."""
  return int(sum(state_bytes(config, dict.fromkeys(parallel.AXES, 1)).values()))


# Caches, because the layouts of a search share most of these.
_INITIAL: dict[str, PyTree] = {}
_TRACES: dict[str, core.Jaxpr] = {}


def _key(config: Config, *more: object) -> str:
  groups = ("model.", "task.", "data.context", "train.compute")
  return digest({name: value for name, value in flatten(config).items() if name.startswith(groups)}) + repr(more)


def _initial(config: Config) -> PyTree:
  """Boxed abstract (parameters, optimizer state)."""
  how, params = optim.How.of(config), models.abstract_parameters(config)
  key = _key(config, how)
  if key not in _INITIAL:
    _INITIAL[key] = params, jax.eval_shape(functools.partial(optim.initial_state, how), params)
  return _INITIAL[key]


def activation_bytes(config: Config, sizes: dict[str, int], chip: Chip | None) -> dict[str, float]:
  """The most bytes that a step holds at once on one device besides the state, by purpose."""
  batch_shards = math.prod(sizes[axis] for axis in parallel.BATCH)
  rows = max(1, config.train.batch_size // config.train.accumulate // batch_shards)
  stages, pieces = sizes["pipeline"], parallel.microbatches(config, sizes["pipeline"])
  part = _part(config, sizes)
  gradients = state_bytes(config, sizes)["parameters"]
  layer = traffic.layer_bytes(config, sizes)
  size_of = _sizes_of(config, sizes, part)
  piece = rows if stages == 1 else max(1, rows // pieces)
  options = {name: config.parallel[name] for name in ("attention", "sequence_attention", "remat", "scan")}
  key = _key(part, piece, options, sizes["sequence"], chip)
  if key not in _TRACES:
    _TRACES[key] = _trace(part, config, sizes, chip, piece)
  trace = _TRACES[key]
  working = liveness.peak(trace, size_of, fuses_scatters=chip is not None)
  item_bytes, tokens = jnp.dtype(part.train.compute_dtype).itemsize, data.unit(config) // sizes["sequence"] * rows
  if stages > 1:
    working = _pipeline_bytes(config, sizes, part, trace, size_of, tokens)
  if config.train.accumulate > 1 or stages > 1:
    working += gradients  # the accumulated gradients and those of one microbatch
  if {"heads", "width"} <= set(config.model):
    working += _exchanged_bytes(config, sizes, tokens // pieces * config.model.width * item_bytes)
  is_sharded = math.prod(sizes[axis] for axis in ("fsdp", "sequence", "expert")) > 1
  return {
    "activations": max(0.0, working - gradients),
    "gradients": gradients,
    "gathered": 2 * layer if is_sharded else 0.0,  # weights of this layer and of the next one
    "reduced": layer if batch_shards > 1 else 0.0,  # gradients of one layer during the reduction
  }


def _pipeline_bytes(
  config: Config, sizes: dict[str, int], part: Config, trace: core.Jaxpr, size_of: liveness.SizeOf, tokens: int
) -> float:
  """Bytes that all turns of a pipeline keep, and the larger of the last stage's blocks and the loss of all rows."""
  turns = parallel.microbatches(config, sizes["pipeline"]) + sizes["pipeline"] - 1
  item_bytes = jnp.dtype(part.train.compute_dtype).itemsize
  shapes = {leaf.shape for leaf in jax.tree.leaves(_parameters(part))}

  def size_but_of_parameters(array: liveness.Array) -> float:
    return 0.0 if array.shape in shapes else size_of(array)

  saved = liveness.stacked(trace, size_but_of_parameters)
  kept = saved * turns + 3 * tokens * config.model.width * item_bytes
  logits = tokens * part.model.vocab * 4
  loss = logits * (2 + item_bytes / 4) + state_bytes(config, sizes)["parameters"]
  return kept + max(liveness.peak(trace, size_of) - saved, loss)


def _exchanged_bytes(config: Config, sizes: dict[str, int], activations: float) -> float:
  """Bytes of both ends of a layer's concurrent exchanges; `activations` are the bytes of one array of them."""
  slots = traffic.slots_per_token(config) * activations
  total = 0.0
  if sizes["tensor"] > 1:
    # Sums of the gradients of a norm's result, by query, key and value; and of slots' results and their gradients.
    total += 6 * activations + 4 * slots
  if sizes["expert"] > 1:
    total += 4 * slots  # slots and their results, before and after each all-to-all
  return total


def _part(config: Config, sizes: dict[str, int]) -> Config:
  """The config of one device's part of the model: its heads, its slice of the widths, its layers."""
  part = config.copy_and_resolve_references()
  model = part.model
  for name in {"heads", "kv_heads", "feed_forward"} & set(model):
    model[name] = max(1, model[name] // sizes["tensor"])
  if not models.in_pieces(model):
    return part
  model.vocab = padded(model.vocab) // math.prod(sizes[axis] for axis in parallel.vocabulary_axes(config, sizes))
  model.layers = model.layers // sizes["pipeline"]
  part.data.context = config.data.context // sizes["sequence"]
  model.expert_group = min(model.expert_group or config.data.context, part.data.context)
  return part


def _parameters(config: Config) -> Params:
  return nn.meta.unbox(_initial(config)[0])


def _sizes_of(config: Config, sizes: dict[str, int], part: Config) -> liveness.SizeOf:
  """A function from arrays of the trace to their bytes; arrays with the shape of a parameter are sharded as it is."""
  shares: dict[tuple[int, ...], float] = {}
  boxed = _initial(config)[0]
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), parallel.rules(config, sizes))
  local = jax.tree.map(functools.partial(parallel.local_bytes, sizes=sizes), nn.meta.unbox(boxed), specs)
  for leaf, size in zip(jax.tree.leaves(_parameters(part)), jax.tree.leaves(local), strict=True):
    if leaf.ndim > 1:
      shares[leaf.shape] = size / (4 * math.prod(leaf.shape))

  def size_of(array: liveness.Array) -> float:
    return math.prod(array.shape) * array.dtype.itemsize * shares.get(array.shape, 1.0)

  return size_of


def _trace(part: Config, config: Config, sizes: dict[str, int], chip: Chip | None, rows: int) -> core.Jaxpr:
  """The jaxpr of the loss and its gradients for one device's part."""
  supplied = models.family(config.model.family).SUPPLIED
  replaced: Supplied = {}
  if "attend" in supplied and (attend := _attend(config, sizes["sequence"], chip)) is not None:
    replaced["attend"] = attend
  if "run_blocks" in supplied:
    replaced["run_blocks"] = _run_blocks(config, sizes)
  model = models.build(part, jnp.dtype(part.train.compute_dtype), **replaced)
  task, traced = tasks.build(part), {name: jnp.float32(0) for name in tasks.traced(part)}

  def loss(params: Params, batch: PyTree) -> jax.Array:
    key = jax.random.key(0)
    return task.objective(applied(model.apply, params, key), batch, traced, key)[0]  # as in training

  return jax.make_jaxpr(jax.grad(loss))(_parameters(part), tasks.batch_shape(part, rows)).jaxpr


def _attend(config: Config, sequence_shards: int, chip: Chip | None) -> Attend | None:
  """A stand-in for attention that uses memory as its kernel does on this many devices; None for plain attention."""
  kernel = config.parallel.attention
  if kernel == "auto":
    kernel = kernels.best(config, "cpu" if chip is None else "tpu" if chip.dimensions else "cuda")
  if kernel in ("splash", "cudnn"):
    return _fused_attention
  if sequence_shards > 1 or kernel == "blockwise":
    return functools.partial(
      _spread_attention, sequence_shards=sequence_shards, ring=config.parallel.sequence_attention == "ring"
    )
  return None


def _run_blocks(config: Config, sizes: dict[str, int]) -> RunBlocks:
  policy = "full" if config.parallel.remat == "offload" else config.parallel.remat
  run = blocks.scanned if blocks.is_scanned(config, sizes) else unrolled

  def run_blocks(block: BlockFunction, stacked: Params, x: jax.Array) -> tuple[jax.Array, Auxiliary]:
    return run(blocks.remat(block, policy), stacked, x)

  return run_blocks


def _spread_attention(q: jax.Array, k: jax.Array, v: jax.Array, sequence_shards: int, ring: bool) -> jax.Array:
  """One device's part of attention along `sequence`, with copies in place of the data that it would receive."""
  if ring and sequence_shards > 1:
    return kernels.around(q, k, v, sequence_shards, jnp.int32(0), jax.lax.optimization_barrier)
  k, v = (jnp.concatenate([x] * sequence_shards, axis=1) for x in (k, v))
  return kernels.chunk(q, k, v, jnp.int32(0))[0]


@jax.custom_vjp
def _fused_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """A stand-in for a kernel that writes its result and one number per query, but no scores."""
  return jax.lax.optimization_barrier(q)


def _fused_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
  out, sums = jax.lax.optimization_barrier((q, q[..., 0].astype(jnp.float32)))
  return out, (q, k, v, out, sums)


def _fused_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, ...]:
  q, k, v, *_ = kept
  dq, dk, dv, _ = jax.lax.optimization_barrier((q, k, v, gradient))
  return dq, dk, dv


_fused_attention.defvjp(_fused_forward, _fused_backward)
