"""The plan by arithmetic: bytes on a device, collectives and their time, without compiling.

State is counted exactly, from shapes and sharding rules. Activations are those of the
layers that the backward pass keeps, plus what one layer and the loss need at their
largest. Tests hold the sum against the compiler's.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigmodel import data, models, optim, parallel, tasks
from bigmodel.config import Config, digest, flatten
from bigmodel.hardware import NETWORK_LATENCY, SWITCH_LATENCY, Chip
from bigmodel.models.layers.block import unrolled
from bigmodel.models.layers.embedding import padded
from bigmodel.models.registry.protocol import Supplied
from bigmodel.parallel import blocks, kernels
from bigmodel.planner import liveness

Facts = dict[str, Any]
EFFICIENCY = 0.75  # of the peak, in dense training steps of large models that are limited by nothing else


def estimate(config: Config, sizes: dict[str, int], chip: Chip | None, memory: bool = True) -> Facts:
  """Bytes, collectives and bubble of a run on a mesh of these sizes; memory takes most of the time."""
  facts: Facts = {
    "collectives": traffic(config, sizes, chip),
    "cycle_seconds": None,
    "bubble": bubble(config, sizes),
  }
  if not memory:
    return facts | {"argument_bytes": 0.0, "peak_bytes": 0.0, "parts": {}}
  state, parts = state_bytes(config, sizes), activation_bytes(config, sizes, chip)
  batch = jax.tree.leaves(tasks.batch_shape(config, config.train.batch_size))
  rows = sum(4 * x.size for x in batch) / math.prod(sizes[a] for a in parallel.BATCH)
  arguments = state["parameters"] + (0 if config.parallel.offload == "optimizer" else state["optimizer"]) + rows
  return facts | {
    "argument_bytes": arguments,
    "peak_bytes": arguments + sum(parts.values()),
    "parts": {**state, **parts},
  }


def bubble(config: Config, sizes: dict[str, int]) -> float:
  """The share of its time that a stage of a pipeline has nothing to do."""
  stages, pieces = sizes["pipeline"], parallel.microbatches(config, sizes["pipeline"])
  return (stages - 1) / (pieces + stages - 1)


def state_bytes(config: Config, sizes: dict[str, int]) -> dict[str, float]:
  """Exact bytes of parameters and optimizer state on one device."""
  boxed = _initial(config)
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), parallel.rules(config, sizes))
  local = lambda leaf, spec: parallel.local_bytes(leaf, spec, sizes)
  params, moments = jax.tree.map(local, nn.meta.unbox(boxed), specs)
  return {"parameters": sum(jax.tree.leaves(params)), "optimizer": sum(jax.tree.leaves(moments))}


def run_bytes(config: Config) -> int:
  """Exact bytes of the parameters and the optimizer state of one run, wherever they are."""
  return int(sum(state_bytes(config, dict.fromkeys(parallel.AXES, 1)).values()))


_KNOWN: dict[str, Any] = {}  # traces of a search, whose layouts share most


def _once(what: str, config: Config, *more: Any, make: Callable[[], Any]) -> Any:
  groups = ("model.", "task.", "data.context", "train.compute")
  kept = {n: v for n, v in flatten(config).items() if n.startswith(groups)}
  key = what + digest(kept) + repr(more)
  if key not in _KNOWN:
    _KNOWN[key] = make()
  return _KNOWN[key]


def _initial(config: Config) -> Any:
  """Boxed abstract (parameters, optimizer state)."""
  how, params = optim.How.of(config), models.abstract_parameters(config)
  initial = functools.partial(optim.initial_state, how)
  return _once("initial", config, how, make=lambda: (params, jax.eval_shape(initial, params)))


def activation_bytes(config: Config, sizes: dict[str, int], chip: Chip | None) -> dict[str, float]:
  """Bytes of what one device's part of a step holds at once besides its state, by what it is for."""
  ways = math.prod(sizes[axis] for axis in parallel.BATCH)
  rows = max(1, config.train.batch_size // config.train.accumulate // ways)
  stages, pieces = sizes["pipeline"], parallel.microbatches(config, sizes["pipeline"])
  part = _part(config, sizes)
  gradients = state_bytes(config, sizes)["parameters"]
  layer = _layer_bytes(config, sizes)
  size_of = _sizes_of(config, sizes, part)
  piece = rows if stages == 1 else max(1, rows // pieces)
  how = {n: config.parallel[n] for n in ("attention", "sequence_attention", "remat", "scan")}
  key = (piece, how, sizes["sequence"], chip)
  whole = _once("trace", part, *key, make=lambda: _trace(part, config, sizes, chip, piece))
  working = liveness.peak(whole, size_of, fuses_scatters=chip is not None)
  half, tokens = jnp.dtype(part.train.compute_dtype).itemsize, data.unit(config) // sizes["sequence"] * rows
  if stages > 1:
    working = _pipeline_bytes(config, sizes, part, whole, size_of, tokens)
  if config.train.accumulate > 1 or stages > 1:
    working += gradients  # the sum so far, and what is added to it
  if {"heads", "width"} <= set(config.model):
    working += _exchanged_bytes(config, sizes, tokens // pieces * config.model.width * half)
  in_pieces = math.prod(sizes[axis] for axis in ("fsdp", "sequence", "expert")) > 1
  return {
    "activations": max(0.0, working - gradients),
    "gradients": gradients,
    "gathered": 2 * layer if in_pieces else 0.0,  # this layer's weights and the next one's
    "reduced": layer if ways > 1 else 0.0,  # a layer's gradients on their way
  }


def _pipeline_bytes(
  config: Config, sizes: dict[str, int], part: Config, whole: Any, size_of: Callable[[Any], float], tokens: int
) -> float:
  """What all turns of a pipeline keep; and then the last stage's blocks at work, or the loss of all rows."""
  turns = parallel.microbatches(config, sizes["pipeline"]) + sizes["pipeline"] - 1
  half = jnp.dtype(part.train.compute_dtype).itemsize
  shapes = {leaf.shape for leaf in jax.tree.leaves(_parameters(part))}
  saved = liveness.stacked(whole, lambda aval: 0.0 if aval.shape in shapes else size_of(aval))
  kept = saved * turns + 3 * tokens * config.model.width * half
  logits = tokens * part.model.vocab * 4
  loss = logits * (2 + half / 4) + state_bytes(config, sizes)["parameters"]
  return kept + max(liveness.peak(whole, size_of) - saved, loss)


def _exchanged_bytes(config: Config, sizes: dict[str, int], activations: float) -> float:
  """Both ends of the exchanges of a layer that are under way together; `activations` is one array of them."""
  slots = slots_per_token(config) * activations
  total = 0.0
  if sizes["tensor"] > 1:
    # Sums of the gradients of a norm's result, by query, key and value; and of slots' results and their gradients.
    total += 6 * activations + 4 * slots
  if sizes["expert"] > 1:
    total += 4 * slots  # before and after each all-to-all, of slots and of their results
  return total


def slots_per_token(config: Config) -> float:
  """Slots of experts that are computed for a token."""
  model = config.model
  if "experts" not in model or not model.experts:
    return 0.0
  return model.experts_per_token * model.expert_capacity if model.expert_capacity else float(model.experts)


def _part(config: Config, sizes: dict[str, int]) -> Config:
  """The config of the model that one device computes: its heads, its slice of the widths, its layers."""
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


def _parameters(config: Config) -> Any:
  return nn.meta.unbox(_initial(config)[0])


def _sizes_of(config: Config, sizes: dict[str, int], part: Config) -> Callable[[Any], float]:
  """Bytes of an array of the trace: what has the shape of a parameter is spread as that is."""
  shares: dict[tuple, float] = {}
  boxed = _initial(config)[0]
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), parallel.rules(config, sizes))
  local = jax.tree.map(lambda leaf, spec: parallel.local_bytes(leaf, spec, sizes), nn.meta.unbox(boxed), specs)
  for leaf, size in zip(jax.tree.leaves(_parameters(part)), jax.tree.leaves(local), strict=True):
    if leaf.ndim > 1:
      shares[leaf.shape] = size / (4 * math.prod(leaf.shape))

  def size_of(aval: Any) -> float:
    return math.prod(aval.shape) * aval.dtype.itemsize * shares.get(aval.shape, 1.0)

  return size_of


def _layer_bytes(config: Config, sizes: dict[str, int]) -> float:
  """The weights of one layer as they are multiplied."""
  width = jnp.dtype(config.train.compute_dtype).itemsize
  layers = config.model.layers if "layers" in config.model else 1
  layer = (models.counts_of(config).params_non_embedding) / layers
  return layer * width / sizes["tensor"] / sizes["expert"]


def _trace(part: Config, config: Config, sizes: dict[str, int], chip: Chip | None, rows: int) -> Any:
  """The jaxpr of loss and gradients of one device's part."""
  platform = "cpu" if chip is None else "tpu" if chip.dimensions else "cuda"
  supplied, spread = models.family(config.model.family).SUPPLIED, sizes["sequence"]
  kernel = config.parallel.attention
  if "attend" in supplied and kernel == "auto":
    kernel = kernels.best(config, platform)
  if "attend" not in supplied:
    attend = None
  elif kernel in ("splash", "cudnn"):
    attend = _fused_attention
  elif spread > 1 or kernel == "blockwise":
    attend = functools.partial(_spread_attention, ways=spread, ring=config.parallel.sequence_attention == "ring")
  else:
    attend = None
  policy = "full" if config.parallel.remat == "offload" else config.parallel.remat
  run = blocks.scanned if blocks.is_scanned(config, sizes) else unrolled
  ways: Supplied = {"attend": attend} if attend else {}
  if "run_blocks" in supplied:
    ways["run_blocks"] = lambda block, stacked, x: run(blocks.remat(block, policy), stacked, x)
  model = models.build(part, jnp.dtype(part.train.compute_dtype), **ways)
  task, traced = tasks.build(part), {name: jnp.float32(0) for name in tasks.traced(part)}

  def loss(params: Any, batch: Any) -> jax.Array:
    key = jax.random.key(0)
    apply: Any = lambda *inputs: model.apply({"params": params}, *inputs, rngs={"dropout": key})  # as in training
    return task.objective(apply, batch, traced, key)[0]

  return jax.make_jaxpr(jax.grad(loss))(_parameters(part), tasks.batch_shape(part, rows)).jaxpr


def _spread_attention(q: jax.Array, k: jax.Array, v: jax.Array, ways: int, ring: bool) -> jax.Array:
  """One device's part of attention along `sequence`, with copies for what it would receive."""
  if ring and ways > 1:
    return kernels.around(q, k, v, ways, jnp.int32(0), jax.lax.optimization_barrier)
  k, v = (jnp.concatenate([x] * ways, axis=1) for x in (k, v))
  return kernels.chunk(q, k, v, jnp.int32(0))[0]


@jax.custom_vjp
def _fused_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Stands for a kernel that writes its result and one number a query, and no scores."""
  return jax.lax.optimization_barrier(q)


def _fused_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
  out, sums = jax.lax.optimization_barrier((q, q[..., 0].astype(jnp.float32)))
  return out, (q, k, v, out, sums)


def _fused_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, ...]:
  q, k, v, *_ = kept
  dq, dk, dv, _ = jax.lax.optimization_barrier((q, k, v, gradient))
  return dq, dk, dv


_fused_attention.defvjp(_fused_forward, _fused_backward)


def traffic(config: Config, sizes: dict[str, int], chip: Chip | None) -> list[Facts]:
  """Collectives of a step by axis: bytes that a device sends, and their seconds where the chip's links are known.

  Weights are gathered for each pass (and again where a layer is recomputed) and their
  gradients scattered; activations are summed over `tensor` four times a layer; keys and
  values travel along `sequence`; slots cross `expert` four times a layer; a pipeline
  passes its activations on.
  """
  model, width = config.model, jnp.dtype(config.train.compute_dtype).itemsize
  ways = math.prod(sizes[axis] for axis in parallel.BATCH)
  tokens = config.train.batch_size * data.unit(config) / ways / sizes["sequence"]
  layers = (model.layers if "layers" in model else 1) / sizes["pipeline"]
  again = 1 if config.parallel.remat in ("full", "offload") else 0
  passes = config.train.accumulate * parallel.microbatches(config, sizes["pipeline"])
  weights = _layer_bytes(config, sizes) * layers
  whole = models.counts_of(config).params_total / sizes["tensor"] / sizes["pipeline"] * width
  stored = math.prod(sizes[axis] for axis in ("fsdp", "sequence", "expert"))
  rows: list[tuple[str, tuple[str, ...], bool, float, float]] = []  # kind, axes, overlaps, bytes, times
  if stored > 1:
    share, axes = (stored - 1) / stored, ("fsdp", "sequence", "expert")
    rows.append(("all-gather", axes, True, (2 + again) * passes * weights * share, (2 + again) * passes * layers))
    rows.append(("reduce-scatter", axes, True, passes * weights * share, passes * layers))
  if (n := sizes["data"]) > 1:
    rows.append(("all-reduce", ("data",), True, 2 * whole / stored * (n - 1) / n, layers))
  activations = tokens * model.width * width if {"heads", "width"} <= set(model) else 0.0
  if (n := sizes["tensor"]) > 1:
    times = (4 + 2 * again) * layers
    rows.append(("all-reduce", ("tensor",), False, times * 2 * activations * (n - 1) / n, times * passes))
  if (n := sizes["sequence"]) > 1:
    pairs = 2 * tokens * model.kv_heads / sizes["tensor"] * model.head_size * width
    times = (2 + again) * layers * (n - 1)
    rows.append(("collective-permute", ("sequence",), True, times * pairs, times * passes))
  if (n := sizes["expert"]) > 1:
    slots = activations * slots_per_token(config)
    both_again = 2 if config.parallel.remat != "none" else 0  # `dots` keeps the experts' products, not what they read
    times = (4 + both_again) * layers
    rows.append(("all-to-all", ("expert",), False, times * slots * (n - 1) / n, times * passes))
  if (n := sizes["pipeline"]) > 1:
    rows.append(("collective-permute", ("pipeline",), False, (2 + again) * activations, (2 + again) * passes))
  found = []
  for kind, axes, overlaps, sent, times in rows:
    n = math.prod(sizes[axis] for axis in axes)
    near = members_per_host(sizes, axes, chip.host) if chip and not chip.dimensions else n
    seconds = wire_seconds(kind, sent, n, _dimensions(n, chip), chip, near, times)
    # Of those that overlap, the first gathering and the last sum have nothing to hide behind.
    facts = {"kind": kind, "group": n, "overlaps": overlaps, "bytes": sent, "count": 1, "seconds": seconds}
    found.append(facts | {"exposed": seconds / times if overlaps else seconds})
  return found


def members_per_host(sizes: dict[str, int], axes: tuple[str, ...], host: int) -> int:
  """How many of a group along some axes of the mesh are on one host, where they are fewest; devices are in order."""
  strides, step = {}, 1
  for axis in reversed(parallel.AXES):
    strides[axis], step = step, step * sizes.get(axis, 1)
  places = [0]
  for axis in axes:
    places = [place + strides[axis] * i for place in places for i in range(sizes[axis])]
  return min(collections.Counter(place // host for place in places).values())


def _between_gpus(kind: str, sent: float, members: int, near: int, times: float, chip: Chip) -> float:
  """As `wire_seconds`, through the switch of each host and a network card for each GPU; a message has a latency."""
  far = members - near  # those on other hosts
  if kind == "all-to-all":  # straight to each of the others, by the switch or the sender's network card
    inside, outside = sent * (near - 1) / (members - 1) / chip.link, sent * far / (members - 1) / chip.network
    return max(inside, outside) + times * ((near - 1) * SWITCH_LATENCY + far * NETWORK_LATENCY)
  if kind == "collective-permute":  # to the next one, which for some member of each host is on another
    slowest, latency = (min(chip.link, chip.network), NETWORK_LATENCY) if far else (chip.link, SWITCH_LATENCY)
    return sent / slowest + times * latency
  # Rings through all members; where they leave the hosts, as many as there are network cards of members on each.
  bandwidth = min(chip.link, chip.network * near) if far else chip.link
  hops = members - 1 if not far else members / near * (near - 1)
  latency = hops * SWITCH_LATENCY + (members / near * NETWORK_LATENCY if far else 0.0)
  return sent / bandwidth + times * (2 if kind == "all-reduce" else 1) * latency


def _dimensions(n: int, chip: Chip | None) -> int:
  """Dimensions of the torus that a group of n chips is likely to fill: sixteen a dimension at most."""
  return min(chip.dimensions, max(1, math.ceil(math.log(n, 16)))) if chip and chip.dimensions else 1


def wire_seconds(
  kind: str, sent: float, members: int, dimensions: int, chip: Chip | None, near: int = 0, times: float = 1
) -> float:
  """Seconds of `times` collectives in which each member sends `sent` bytes in all.

  On rings along so many dimensions of a torus; or between GPUs, of which `near` of the group are on each host (0: all).
  """
  if chip is None or members < 2:
    return 0.0
  if not chip.dimensions:
    return _between_gpus(kind, sent, members, near or members, times, chip)
  links = 2 * dimensions if members > 2 else 1  # both directions of a ring
  if kind == "collective-permute":
    return sent / chip.link
  if kind == "all-to-all":
    # Half of it crosses the middle of the ring, whose links are few.
    return sent * max(1.0, members ** (1 / dimensions) / 4) / (chip.link * links)
  return sent / (chip.link * links)
