"""The mesh of a program, for one run or for the members of a pack side by side."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bigmodel.config import Config
from bigmodel.parallel.logical_axes import AXES
from bigmodel.parallel.sizes import mesh_sizes
from bigmodel.types import Device


def make_mesh(config: Config, members: int = 1, devices: Sequence[Device] | None = None) -> Mesh:
  """Returns the mesh of one program: of a single run, or of a pack, whose lanes lie along the axis `member`."""
  devices = jax.devices() if devices is None else devices
  if members > 1:
    most = min(lanes(config, len(devices)), members)
    side = most if mapped(config) else max(n for n in range(1, most + 1) if members % n == 0)
    return make_mesh_of({"member": side, **asked(config)}, devices)
  return make_mesh_of(mesh_sizes(config, len(devices)), devices)


def lanes(config: Config, devices: int) -> int:
  """Returns how many members of a pack train at once, each on the devices that the config's axes require."""
  return max(1, devices // math.prod(asked(config).values()))


def mapped(config: Config) -> bool:
  """Whether the members of a lane train one after another, which is faster on CPU."""
  return jax.default_backend() == "cpu" and not asked(config)


def asked(config: Config) -> dict[str, int]:
  """Returns the axes over which each member of a pack is sharded: those set in the config, not those of a preset."""
  return {axis: config.parallel[axis] for axis in AXES[1:] if config.parallel[axis] > 1}


def make_mesh_of(sizes: Mapping[str, int], devices: Sequence[Device] | None = None) -> Mesh:
  """Makes a mesh of these sizes from the first devices."""
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  devices = list(jax.devices() if devices is None else devices)[: math.prod(shape)]
  # Linen's logical constraints need Auto axes; jax.make_mesh would make Explicit ones.
  kinds = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
  except NotImplementedError:  # an axis, such as 32 of 4 x 4 x 4 chips, is not whole axes of the torus
    places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(places, AXES, axis_types=kinds)
