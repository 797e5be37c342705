"""Shardings of arrays on a mesh, and the bytes that they take on a device."""

import math
from collections.abc import Mapping
from typing import cast

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bigmodel.config import require
from bigmodel.parallel.logical_axes import BATCH, RULES, Rules, mesh_axes
from bigmodel.types import Device, PyTree


def shardings(mesh: Mesh | AbstractMesh, abstract: PyTree, rules: Rules = RULES) -> PyTree:
  """Returns NamedShardings of a tree of boxed abstract arrays; raises if a name lacks a rule or a size does not fit."""
  specs = nn.get_partition_spec(abstract)
  names = {name for name, _ in rules}
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(abstract))
  leaves_of_specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
  for (path, leaf), spec in zip(leaves, leaves_of_specs, strict=True):
    where = jax.tree_util.keystr(path, simple=True, separator=".")
    unknown = [name for name in spec if name is not None and name not in names]
    require(not unknown, f"config.parallel.rules: no rule for the axis {unknown and unknown[0]!r} of {where}")
    require(leaf.ndim == 0 or len(spec) == leaf.ndim, f"{where}: its model names no axes, so no rule can match it")
  placed = nn.logical_to_mesh_sharding(specs, cast(Mesh, mesh), rules)  # it accepts an abstract mesh, too
  for (path, leaf), sharding in zip(leaves, jax.tree.leaves(placed), strict=True):
    for size, entry in zip(leaf.shape, sharding.spec, strict=False):
      axes = mesh_axes(entry)
      ways = math.prod(mesh.shape[axis] for axis in axes)
      where = jax.tree_util.keystr(path, simple=True, separator=".")
      names_of_axes = " x ".join(axis for axis in axes if mesh.shape[axis] > 1)
      require(
        size % ways == 0, f"config.parallel.{names_of_axes}: {ways} does not divide an axis of size {size} of {where}"
      )
  return placed


def local_bytes(leaf: jax.ShapeDtypeStruct | jax.Array, spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
  """Returns the bytes of an array's shard on one device of a mesh of these sizes."""
  total = leaf.dtype.itemsize
  for i, size in enumerate(leaf.shape):
    axes = mesh_axes(spec[i]) if i < len(spec) else ()
    total *= -(-size // math.prod(sizes.get(axis, 1) for axis in axes))
  return total


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of rows of a batch, over all axes of `BATCH`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def member_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is over the members of a pack."""
  return NamedSharding(mesh, PartitionSpec("member"))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding in which every device has the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def bytes_on(device: Device, tree: PyTree) -> int:
  """Returns the bytes of a tree of arrays that are on one device."""
  shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device]
  return sum(int(np.prod(shard.data.shape)) * shard.data.dtype.itemsize for shard in shards)
