"""Meshes and sharding: where arrays lie. Models name the axes of arrays, rules map the names to axes of the mesh.

`config.parallel` says how a run is carried out and never what it computes. A preset gives sizes to the axes of the
mesh.
"""

<<<<<<< HEAD
from bigmodel.parallel.checks import check
from bigmodel.parallel.fields import PRESETS, REMAT
from bigmodel.parallel.logical_axes import AXES, BATCH, RULES, Rules, rules, rules_on, vocabulary_axes
from bigmodel.parallel.mesh import asked, lanes, make_mesh, make_mesh_of, mapped
from bigmodel.parallel.sharding import (
  batch_sharding,
  bytes_on,
  local_bytes,
  member_sharding,
  replicated,
  shardings,
=======
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigmodel import declarations, models, user_files
from bigmodel.config import Config, nearest, require
from bigmodel.errors import UserError
from bigmodel.models.layers.embedding import padded
from bigmodel.parallel.fields import PRESETS, Parallel
from bigmodel.parallel.fields import REMAT as REMAT

AXES = ("member", "data", "fsdp", "tensor", "sequence", "expert", "pipeline")
BATCH = ("data", "fsdp", "expert")  # the axes that rows of a batch are spread over

# logical axis -> mesh axes. The first rule of a name applies whose mesh axes the array does not use yet;
# an axis of the mesh that has size 1 does nothing.
RULES: tuple[tuple[str, Any], ...] = (
  ("batch", BATCH),
  ("expert_batch", ("data", "fsdp")),
  ("length", "sequence"),
  ("activation_embed", None),
  ("layers", "pipeline"),
  ("expert", "expert"),
  ("vocab", ("tensor", "pipeline")),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", ("fsdp", "sequence", "expert")),
  ("embed", ("fsdp", "sequence")),
  ("head_size", None),
  ("positions", None),
  ("types", None),
  ("inputs", None),
  ("outputs", None),
  ("kernel_height", None),
  ("kernel_width", None),
  ("router", None),
  ("norm", None),
>>>>>>> models
)
from bigmodel.parallel.sizes import mesh_sizes, microbatches, notes, notes_here

<<<<<<< HEAD
__all__ = [
  "AXES",
  "BATCH",
  "PRESETS",
  "REMAT",
  "RULES",
  "Rules",
  "asked",
  "batch_sharding",
  "bytes_on",
  "check",
  "lanes",
  "local_bytes",
  "make_mesh",
  "make_mesh_of",
  "mapped",
  "member_sharding",
  "mesh_sizes",
  "microbatches",
  "notes",
  "notes_here",
  "replicated",
  "rules",
  "rules_on",
  "shardings",
  "vocabulary_axes",
]
=======

# What the size of an axis has to divide.
DIVIDES = {
  "tensor": ("model.heads", "model.kv_heads"),
  "sequence": ("data.context",),
  "pipeline": ("model.layers",),
  "expert": ("model.experts",),
}


def check(config: Config, devices: int | None = None) -> None:
  """Refuses a mesh that the devices (those here, unless told) or this batch and model cannot fill."""
  parallel, model = config.parallel, config.model
  declarations.check("parallel", Parallel, parallel)
  rules(config)
  sizes = mesh_sizes(config, jax.device_count() if devices is None else devices)
  if devices is None and jax.process_count() > 1:
    used = math.prod(sizes.values())
    require(
      used == jax.device_count(),
      f"config.parallel: {used} of {jax.device_count()} devices would be used, and some of"
      f" {jax.process_count()} processes have none of them; larger batches or other sizes",
    )
  pieces = microbatches(config, sizes["pipeline"])
  shards = math.prod(sizes[axis] for axis in BATCH)
  for group in ("train", "eval"):
    batch = config[group].batch_size
    if group == "train":
      batch, rest = divmod(batch, config.train.accumulate)
      require(
        rest == 0,
        f"config.train.batch_size: {config.train.batch_size} is not divisible by"
        f" config.train.accumulate = {config.train.accumulate}",
      )
    require(
      batch % (shards * pieces) == 0,
      f"config.{group}.batch_size: {batch} rows are not divisible by the mesh (data x fsdp x expert = {shards}"
      + (f", in {pieces} microbatches" if pieces > 1 else "")
      + f"); use a multiple of {shards * pieces} or set config.parallel.data",
    )
  for axis, names in DIVIDES.items():
    for name in names:
      number = _number(config, name)
      require(
        sizes[axis] == 1 or number is not None,
        f"config.parallel.{axis}: {sizes[axis]}; a {model.family} has no {name} to be spread",
      )
      require(
        (number or 0) % sizes[axis] == 0,
        f"config.parallel.{axis}: {sizes[axis]} does not divide {name} = {number}",
      )
  supplied = models.family(model.family).SUPPLIED
  if "run_blocks" not in supplied:
    require(
      parallel.remat == "none" and not parallel.scan,
      f"config.parallel: a {model.family} has no stack of blocks to scan or to compute again",
    )
  if "attend" not in supplied or model.positions == "relative":
    require(
      parallel.attention in ("auto", "plain"),
      f"config.parallel.attention: {parallel.attention!r} is not for this {model.family}; use plain",
    )
  require(
    sizes["pipeline"] == 1 or not model.dropout,
    f"config.parallel.pipeline: {sizes['pipeline']} would draw other dropout masks; use 1 or model.dropout=0",
  )
  if _number(config, "model.experts"):
    groups = _groups(config)
    require(
      groups % sizes["sequence"] == 0,
      f"config.parallel.sequence: {sizes['sequence']} does not divide the {groups} groups of a row;"
      " set model.expert_group smaller",
    )


def _number(config: Config, name: str) -> int | None:
  """What an axis of the mesh divides; None where the model or its data do not have it."""
  group, field = name.split(".")
  if user_files.is_reference(config.model.family):
    return None
  field = "heads" if field == "kv_heads" and field not in config.model else field
  if name in ("data.context", "model.layers") and name not in models.in_pieces(config.model):
    return None
  return config[group].get(field)


def rules(config: Config, sizes: Mapping[str, int] | None = None) -> tuple[tuple[str, Any], ...]:
  """The rules of a config: its own, then the built-in ones of the names that it does not mention.

  On a mesh of these `sizes` a vocabulary is spread over no more axes than divide it.
  """
  own: list[tuple[str, Any]] = []
  known = {name for name, _ in RULES}
  for text in config.parallel.rules:
    name, equals, axes = text.partition("=")
    require(bool(equals), f"config.parallel.rules: {text!r} is not 'logical=axis'")
    if name not in known:
      raise UserError(f"config.parallel.rules: no logical axis {name!r}{nearest(name, known)}")
    parts = tuple(axis for axis in axes.split("+") if axis)
    for axis in parts:
      if axis not in AXES[1:]:
        raise UserError(f"config.parallel.rules: no mesh axis {axis!r}{nearest(axis, AXES[1:])}")
    own.append((name, parts or None))
  named = {name for name, _ in own}
  built_in = [rule for rule in RULES if rule[0] not in named]
  if sizes is not None:
    vocab = ("vocab", vocabulary_axes(config, sizes) or None)
    built_in = [vocab if name == "vocab" else (name, axes) for name, axes in built_in]
  return (*own, *built_in)


def vocabulary_axes(config: Config, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The axes of a mesh that a padded vocabulary is spread over: as many of the built-in rule's as divide it."""
  axes, rows = dict(RULES)["vocab"], padded(config.model.get("vocab", 0))
  while rows % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes


def rules_on(mesh: Mesh, rules: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
  """The rules without the axes of size 1, so that a model can tell what is spread."""
  kept = lambda axes: tuple(a for a in ((axes,) if isinstance(axes, str) else axes or ()) if mesh.shape[a] > 1)
  return tuple((name, kept(axes) or None) for name, axes in rules)


def mesh_sizes(config: Config, devices: int) -> dict[str, int]:
  """The size of each axis but `member`, with the preset's wishes and -1 filled in.

  What a config asks for is taken or refused; what a preset wishes for shrinks to what divides the devices, the model
  and the rows of a batch. Where rows, or for `fsdp` the widths of the model, would not divide by what is left over, a
  divisor is taken: a small batch runs on a large machine, and a preset lets `data` have what `fsdp` cannot use.
  """
  asked = {axis: config.parallel[axis] for axis in AXES[1:]}
  for axis, size in asked.items():
    require(size >= -1, f"config.parallel.{axis}: {size} is neither positive nor 0 nor -1")
  free = [axis for axis, size in asked.items() if size == -1]
  require(len(free) <= 1, f"config.parallel: only one axis may be -1, not {' and '.join(free)}")
  fixed = math.prod(size for size in asked.values() if size > 0)
  require(devices >= fixed, f"config.parallel: {fixed} devices are asked for, {devices} are here")
  left = devices // fixed
  sizes = {axis: max(size, 1) for axis, size in asked.items()}
  rows = math.gcd(config.train.batch_size // config.train.accumulate, config.eval.batch_size)

  def fits(sizes: dict[str, int]) -> bool:
    """Can the rows of a batch be spread over axes of these sizes?"""
    return rows % (math.prod(sizes[axis] for axis in BATCH) * microbatches(config, sizes["pipeline"])) == 0

  for axis, wish in PRESETS[config.parallel.preset].items():
    if asked[axis] == 0 and wish == -1 and not free:
      free = [axis]
    elif asked[axis] == 0 and wish > 0:
      able = math.gcd(left, _limit(config, axis, sizes))
      sizes[axis] = max(n for n in range(1, wish + 1) if n == 1 or (able % n == 0 and fits({**sizes, axis: n})))
      left //= sizes[axis]
  if not free:
    return sizes
  (axis,) = free
  if axis not in BATCH:
    return {**sizes, axis: left}
  able = [n for n in range(1, left + 1) if fits({**sizes, axis: n})] or [1]
  if axis != "fsdp":
    return {**sizes, axis: max(able)}
  stored = math.gcd(*_widths(config)) // math.prod(sizes[other] for other in ("sequence", "expert"))
  ways = [(math.gcd(n, stored), n) for n in able]  # of `fsdp`, and together with what is left for `data`
  if asked["fsdp"] or asked["data"]:
    ways = [(fsdp, n) for fsdp, n in ways if fsdp == n or not stored] or [(1, 1)]
  if any(2 * n >= left for _, n in ways):
    ways = [(fsdp, n) for fsdp, n in ways if 2 * n >= left]  # memory comes before speed, but not at any price
  fsdp, n = max(ways) if stored else (max(able),) * 2
  return {**sizes, "fsdp": fsdp} | ({"data": n // fsdp} if n > fsdp else {})


def _widths(config: Config) -> tuple[int, ...]:
  """Lengths of the axes named `embed` of a model's parameters."""
  model = config.model
  if user_files.is_reference(model.family):  # of which nothing is spread unless it names axes itself
    return ()
  if "hidden" in model:
    return (model.hidden,) if isinstance(model.hidden, int) else tuple(model.hidden)
  return (model.width,) if "heads" in model else ()


def _limit(config: Config, axis: str, sizes: Mapping[str, int]) -> int:
  """What a preset's wish for an axis has to divide besides the devices, beside other axes of these sizes."""
  numbers = [_number(config, name) or 1 for name in DIVIDES[axis]]
  if axis == "tensor":
    numbers.append(config.model.get("feed_forward", 0))
  if axis in ("sequence", "expert"):  # which the axes `embed` are spread over, together with `fsdp`
    others = math.prod(sizes[other] for other in ("fsdp", "sequence", "expert") if other != axis)
    numbers.append(math.gcd(*_widths(config)) // others)
  if axis == "sequence" and _number(config, "model.experts"):
    numbers.append(_groups(config))
  if axis == "pipeline" and config.model.get("dropout"):
    numbers.append(1)
  return math.gcd(*numbers)


def _groups(config: Config) -> int:
  """Groups of tokens of a row that are routed to experts together."""
  return config.data.context // (config.model.expert_group or config.data.context)


def notes(config: Config, sizes: Mapping[str, int], devices: int) -> list[str]:
  """What a preset wished for and did not get, and whether devices are idle."""
  wishes, used = PRESETS[config.parallel.preset].items(), math.prod(sizes.values())
  idle = [
    f"{devices - used} of {devices} devices are idle: the batch of {config.train.batch_size} and the model can be split"
    f" over {used}; other batch sizes or config.parallel may use more"
  ]
  return (idle if used < devices else []) + [
    f"config.parallel.preset: {config.parallel.preset} is for {axis}={wish}, and {axis}={sizes[axis]} is what divides"
    " the devices, the model and the batch"
    for axis, wish in wishes
    if wish > sizes[axis] and not config.parallel[axis]
  ]


def notes_here(config: Config) -> list[str]:
  """The notes of a run on the devices that are here."""
  return notes(config, mesh_sizes(config, jax.device_count()), jax.device_count())


def microbatches(config: Config, stages: int) -> int:
  """The pieces of a batch that follow each other through a pipeline; 1 without one."""
  return 1 if stages == 1 else config.parallel.microbatches or 2 * stages


def make_mesh(config: Config, members: int = 1, devices: Any = None) -> Mesh:
  """The mesh of one program: that of a run, or runs side by side along `member`, each on a lane."""
  devices = list(jax.devices() if devices is None else devices)
  if members > 1:
    most = min(lanes(config, len(devices)), members)
    side = most if mapped(config) else max(n for n in range(1, most + 1) if members % n == 0)
    return make_mesh_of({"member": side, **asked(config)}, devices)
  return make_mesh_of(mesh_sizes(config, len(devices)), devices)


def lanes(config: Config, devices: int) -> int:
  """How many members of a pack have devices of their own: one each, or as many as the config's axes ask for."""
  return max(1, devices // math.prod(asked(config).values()))


def mapped(config: Config) -> bool:
  """Do the members of a pack on one lane train one after another? So it is on a CPU's cores, where that is faster."""
  return jax.default_backend() == "cpu" and not asked(config)


def asked(config: Config) -> dict[str, int]:
  """The axes that a member of a pack is spread over; what a preset wishes for goes to more members."""
  return {axis: config.parallel[axis] for axis in AXES[1:] if config.parallel[axis] > 1}


def make_mesh_of(sizes: dict[str, int], devices: Any = None) -> Mesh:
  """The mesh of these sizes, over the first devices."""
  devices = list(jax.devices() if devices is None else devices)
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  # Linen's logical constraints need Auto axes; jax.make_mesh would make Explicit ones.
  kinds = (AxisType.Auto,) * len(AXES)
  devices = devices[: math.prod(shape)]
  try:
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
  except NotImplementedError:  # an axis, such as 32 of 4 x 4 x 4 chips, is not whole axes of the torus
    places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(places, AXES, axis_types=kinds)


def shardings(mesh: Mesh, abstract: Any, rules: tuple[tuple[str, Any], ...] = RULES) -> Any:
  """NamedShardings of a tree of boxed abstract arrays; refuses names without a rule and axes that do not divide."""
  specs = nn.get_partition_spec(abstract)
  names = {name for name, _ in rules}
  is_spec = lambda x: isinstance(x, PartitionSpec)
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(abstract))
  for (path, leaf), spec in zip(leaves, jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
    where = jax.tree_util.keystr(path, simple=True, separator=".")
    unknown = [name for name in spec if name is not None and name not in names]
    require(not unknown, f"config.parallel.rules: no rule for the axis {unknown and unknown[0]!r} of {where}")
    require(leaf.ndim == 0 or len(spec) == leaf.ndim, f"{where}: its model names no axes, so no rule can match it")
  placed = nn.logical_to_mesh_sharding(specs, mesh, rules)
  for (path, leaf), sharding in zip(leaves, jax.tree.leaves(placed), strict=True):
    for size, axes in zip(leaf.shape, sharding.spec, strict=False):
      axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
      ways = math.prod(mesh.shape[axis] for axis in axes)
      where = jax.tree_util.keystr(path, simple=True, separator=".")
      wide = " x ".join(axis for axis in axes if mesh.shape[axis] > 1)
      require(size % ways == 0, f"config.parallel.{wide}: {ways} does not divide a {size} wide axis of {where}")
  return placed


def local_bytes(leaf: Any, spec: PartitionSpec, sizes: dict[str, int]) -> int:
  """Bytes of an array's part on one device of a mesh of these sizes."""
  total = leaf.dtype.itemsize
  for i, size in enumerate(leaf.shape):
    axes = spec[i] if i < len(spec) else None
    axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
    total *= -(-size // math.prod(sizes.get(axis, 1) for axis in axes))
  return total


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(BATCH))


def member_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec("member"))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def bytes_on(device: Any, tree: Any) -> int:
  """Bytes of a tree of arrays that lie on one device."""
  shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device]
  return sum(int(np.prod(shard.data.shape)) * shard.data.dtype.itemsize for shard in shards)
>>>>>>> models
