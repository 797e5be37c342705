"""Meshes and sharding: where arrays live; models name axes, rules map them to the mesh."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigmodel.config import Config, require

AXES = ("member", "data", "fsdp", "tensor")

# logical axis -> mesh axis; an axis of the mesh that has size 1 does nothing.
RULES = (
  ("batch", ("data", "fsdp")),
  ("length", None),
  ("activation_embed", None),
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("head_size", None),
  ("mlp", "tensor"),
  ("norm", None),
)


def fields() -> dict[str, Any]:
  """The fields of `config.parallel`: sizes of the mesh's axes; -1 takes the devices left over."""
  return {"data": -1, "fsdp": 1, "tensor": 1}


def check(config: Config) -> None:
  """Refuses a mesh that these devices or this batch cannot fill."""
  sizes = mesh_sizes(config, jax.device_count())
  shards = sizes["data"] * sizes["fsdp"]
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
      batch % shards == 0,
      f"config.{group}.batch_size: {batch} rows are not divisible by the mesh (data x fsdp = {shards});"
      f" use a multiple of {shards} or set config.parallel.data",
    )


def mesh_sizes(config: Config, devices: int) -> dict[str, int]:
  """The size of each axis but `member`, with -1 filled in.

  Where -1 would not divide the batch, the largest divisor that does is taken,
  so that a small batch runs on a large machine.
  """
  sizes = {name: config.parallel[name] for name in AXES[1:]}
  for name, size in sizes.items():
    require(size == -1 or size > 0, f"config.parallel.{name}: {size} is neither positive nor -1")
  free = [name for name, size in sizes.items() if size == -1]
  require(len(free) <= 1, f"config.parallel: only one axis may be -1, not {' and '.join(free)}")
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  require(devices >= fixed, f"config.parallel: {fixed} devices are asked for, {devices} are here")
  if free:
    left = devices // fixed
    if free[0] == "data":
      rows = np.gcd(config.train.batch_size // config.train.accumulate, config.eval.batch_size)
      left = max(n for n in range(1, left + 1) if rows % n == 0)
    sizes[free[0]] = left
  return sizes


def make_mesh(config: Config, members: int = 1) -> Mesh:
  """The mesh of one program: runs share its `member` axis, or one run takes the others."""
  devices = jax.devices()
  if members > 1:
    lanes = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    sizes = {"member": lanes, "data": 1, "fsdp": 1, "tensor": 1}
  else:
    sizes = {"member": 1, **mesh_sizes(config, len(devices))}
  count = int(np.prod(list(sizes.values())))
  # Linen's logical constraints need Auto axes; jax.make_mesh would make Explicit ones.
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(sizes[name] for name in AXES), AXES, axis_types=kinds, devices=devices[:count])


def shardings(mesh: Mesh, abstract: Any) -> Any:
  """NamedShardings of a tree of boxed abstract arrays, by `RULES`; refuses an axis that does not divide."""
  placed = nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, RULES)
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(nn.meta.unbox(abstract)), jax.tree.leaves(placed), strict=True
  ):
    for size, axis in zip(leaf.shape, sharding.spec, strict=False):
      ways = mesh.shape[axis] if isinstance(axis, str) else 1
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      require(size % ways == 0, f"config.parallel.{axis}: {ways} does not divide a {size} wide axis of {name}")
  return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def member_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec("member"))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
