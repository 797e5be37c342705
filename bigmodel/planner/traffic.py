"""Computes what the devices of a mesh send to each other in a step, and how long that takes on their links."""

import dataclasses
import math
from collections import Counter

import jax.numpy as jnp

from bigmodel import data, models, parallel
from bigmodel.config import Config
from bigmodel.hardware import NETWORK_LATENCY, SWITCH_LATENCY, Chip


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
  """The collectives of one kind in a step, for one device."""

  kind: str
  group: int  # devices
  overlaps: bool  # with computation
  bytes: float  # sent by the device
  seconds: float  # 0 where the links are unknown
  count: float
  exposed: float  # seconds that do not overlap with computation


def slots_per_token(config: Config) -> float:
  """Slots of experts per token."""
  model = config.model
  if "experts" not in model or not model.experts:
    return 0.0
  return model.experts_per_token * model.expert_capacity if model.expert_capacity else float(model.experts)


def layer_bytes(config: Config, sizes: dict[str, int]) -> float:
  """Bytes of one layer's weights on a device, gathered and in the dtype of products."""
  width = jnp.dtype(config.train.compute_dtype).itemsize
  layers = config.model.layers if "layers" in config.model else 1
  layer = (models.counts_of(config).params_non_embedding) / layers
  return layer * width / sizes["tensor"] / sizes["expert"]


@dataclasses.dataclass(frozen=True)
class _Sent:
  """The bytes that a device sends in a step by collectives of one kind along some axes of the mesh."""

  kind: str
  axes: tuple[str, ...]
  overlaps: bool
  bytes: float
  times: float


def collectives(config: Config, sizes: dict[str, int], chip: Chip | None) -> list[CollectiveCost]:
  """The collectives of a step on a mesh of these sizes, with seconds where the chip's links are known."""
  costs = []
  for sent in (*_weight_traffic(config, sizes), *_activation_traffic(config, sizes)):
    members = math.prod(sizes[axis] for axis in sent.axes)
    near = members_per_host(sizes, sent.axes, chip.host) if chip and not chip.dimensions else members
    group = Group(members, _dimensions(members, chip), near)
    seconds = wire_seconds(sent.kind, sent.bytes, group, chip, sent.times)
    # Of overlapping collectives, only the first gather and the last reduction are not hidden by computation.
    exposed = seconds / sent.times if sent.overlaps else seconds
    costs.append(CollectiveCost(sent.kind, members, sent.overlaps, sent.bytes, seconds, 1, exposed))
  return costs


def _recomputed_passes(config: Config) -> int:
  """How many times the backward pass recomputes the forward pass: 0 or 1."""
  return 1 if config.parallel.remat in ("full", "offload") else 0


def _passes(config: Config, sizes: dict[str, int]) -> int:
  return config.train.accumulate * parallel.microbatches(config, sizes["pipeline"])


def _layers(config: Config, sizes: dict[str, int]) -> float:
  return (config.model.layers if "layers" in config.model else 1) / sizes["pipeline"]


def _weight_traffic(config: Config, sizes: dict[str, int]) -> list[_Sent]:
  """Traffic of weights: gathered for each pass and each recomputation; their gradients are scattered."""
  width, layers, passes = jnp.dtype(config.train.compute_dtype).itemsize, _layers(config, sizes), _passes(config, sizes)
  gathered = 2 + _recomputed_passes(config)
  weights = layer_bytes(config, sizes) * layers
  stored = math.prod(sizes[axis] for axis in ("fsdp", "sequence", "expert"))
  sent = []
  if stored > 1:
    share, axes = (stored - 1) / stored, ("fsdp", "sequence", "expert")
    sent.append(_Sent("all-gather", axes, True, gathered * passes * weights * share, gathered * passes * layers))
    sent.append(_Sent("reduce-scatter", axes, True, passes * weights * share, passes * layers))
  if (n := sizes["data"]) > 1:
    whole = models.counts_of(config).params_total / sizes["tensor"] / sizes["pipeline"] * width
    sent.append(_Sent("all-reduce", ("data",), True, 2 * whole / stored * (n - 1) / n, layers))
  return sent


def _activation_traffic(config: Config, sizes: dict[str, int]) -> list[_Sent]:
  """Traffic of activations.

  They are summed over `tensor` four times per layer, keys and values travel along `sequence`, slots cross `expert` four
  times per layer, and a pipeline passes its activations on.
  """
  model, width = config.model, jnp.dtype(config.train.compute_dtype).itemsize
  layers, passes, again = _layers(config, sizes), _passes(config, sizes), _recomputed_passes(config)
  ways = math.prod(sizes[axis] for axis in parallel.BATCH)
  tokens = config.train.batch_size * data.unit(config) / ways / sizes["sequence"]
  activations = tokens * model.width * width if {"heads", "width"} <= set(model) else 0.0
  sent = []
  if (n := sizes["tensor"]) > 1:
    times = (4 + 2 * again) * layers
    sent.append(_Sent("all-reduce", ("tensor",), False, times * 2 * activations * (n - 1) / n, times * passes))
  if (n := sizes["sequence"]) > 1:
    pairs = 2 * tokens * model.kv_heads / sizes["tensor"] * model.head_size * width
    times = (2 + again) * layers * (n - 1)
    sent.append(_Sent("collective-permute", ("sequence",), True, times * pairs, times * passes))
  if (n := sizes["expert"]) > 1:
    slots = activations * slots_per_token(config)
    both_again = 2 if config.parallel.remat != "none" else 0  # `dots` keeps the experts' products, not their inputs
    times = (4 + both_again) * layers
    sent.append(_Sent("all-to-all", ("expert",), False, times * slots * (n - 1) / n, times * passes))
  if sizes["pipeline"] > 1:
    sent.append(_Sent("collective-permute", ("pipeline",), False, (2 + again) * activations, (2 + again) * passes))
  return sent


def members_per_host(sizes: dict[str, int], axes: tuple[str, ...], host: int) -> int:
  """The fewest members that a group along some axes of the mesh has on one host, with devices in the mesh's order."""
  strides, step = {}, 1
  for axis in reversed(parallel.AXES):
    strides[axis], step = step, step * sizes.get(axis, 1)
  places = [0]
  for axis in axes:
    places = [place + strides[axis] * i for place in places for i in range(sizes[axis])]
  return min(Counter(place // host for place in places).values())


@dataclasses.dataclass(frozen=True)
class Group:
  """Devices that take part in a collective together."""

  members: int
  dimensions: int = 1  # dimensions of the torus that the group spans, as rings
  near: int = 0  # members on each host, for GPUs; 0: all


def _between_gpus(kind: str, sent: float, group: Group, chip: Chip, times: float) -> float:
  """`wire_seconds` for GPUs: a switch in each host, one network card for each GPU, and a latency for each message."""
  members, near = group.members, group.near or group.members
  far = members - near  # those on other hosts
  if kind == "all-to-all":  # directly to each of the others, by the switch or by the sender's network card
    inside, outside = sent * (near - 1) / (members - 1) / chip.link, sent * far / (members - 1) / chip.network
    return max(inside, outside) + times * ((near - 1) * SWITCH_LATENCY + far * NETWORK_LATENCY)
  if kind == "collective-permute":  # to the next member, which for some member of each host is on another host
    slowest, latency = (min(chip.link, chip.network), NETWORK_LATENCY) if far else (chip.link, SWITCH_LATENCY)
    return sent / slowest + times * latency
  # Rings through all members. Between hosts there are as many rings as a host has network cards of members.
  bandwidth = min(chip.link, chip.network * near) if far else chip.link
  hops = members - 1 if not far else members / near * (near - 1)
  latency = hops * SWITCH_LATENCY + (members / near * NETWORK_LATENCY if far else 0.0)
  return sent / bandwidth + times * (2 if kind == "all-reduce" else 1) * latency


def _dimensions(n: int, chip: Chip | None) -> int:
  """The dimensions of the torus that a group of n chips is likely to fill, with at most 16 chips along each."""
  return min(chip.dimensions, max(1, math.ceil(math.log(n, 16)))) if chip and chip.dimensions else 1


def wire_seconds(kind: str, sent: float, group: Group, chip: Chip | None, times: float = 1) -> float:
  """Seconds of `times` collectives in which each member sends `sent` bytes in all; 0 where the links are unknown."""
  if chip is None or group.members < 2:
    return 0.0
  if not chip.dimensions:
    return _between_gpus(kind, sent, group, chip, times)
  links = 2 * group.dimensions if group.members > 2 else 1  # both directions of a ring
  if kind == "collective-permute":
    return sent / chip.link
  if kind == "all-to-all":
    # Half of the data crosses the middle of the ring, which has few links.
    return sent * max(1.0, group.members ** (1 / group.dimensions) / 4) / (chip.link * links)
  return sent / (chip.link * links)
