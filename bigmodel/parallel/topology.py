"""Devices to plan for: a pod slice elsewhere, GPUs, or this machine.

`v5p:4x4x4` is a slice of that shape, `h100:8` are eight GPUs, and an empty name is this machine. libtpu compiles for
TPU slices without a TPU. Without libtpu, plans for TPU slices are estimated without compiling.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence

import jax

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.hardware import CHIPS, Chip
from bigmodel.types import Device

INSTALL = "pip install 'bigmodel[tpu]'"


@dataclasses.dataclass(frozen=True)
class Topology:
  """A set of devices, of this machine or elsewhere. `devices` is None if they can only be counted."""

  name: str
  kind: str  # a key of CHIPS; '' is this machine
  shape: tuple[int, ...]  # shape of the torus, in chips
  count: int  # devices
  devices: Sequence[Device] | None  # of this machine, or to compile for
  why_not: str = ""  # why programs cannot be compiled for them

  @property
  def chip(self) -> Chip | None:
    return CHIPS.get(self.kind)

  @property
  def chips(self) -> int:
    return self.count // (self.chip.devices if self.chip else 1)


def parse(name: str, devices: bool = True) -> Topology:
  """Parses the name of a topology. With `devices`, it has devices to compile for if possible."""
  if not name:
    return Topology("this machine", "", (jax.device_count(),), jax.device_count(), jax.devices())
  match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
  if not match:
    raise UserError(f"--topology: {name!r} is not KIND:SHAPE, such as v5e:4x4, v5p:4x4x4 or h100:8")
  kind, shape = match.group(1), tuple(int(n) for n in match.group(2).split("x"))
  if kind not in CHIPS:
    raise UserError(f"--topology: no chip {kind!r}{nearest(kind, CHIPS)}; known: {', '.join(CHIPS)}")
  chip = CHIPS[kind]
  if len(shape) != max(1, chip.dimensions):
    raise UserError(
      f"--topology: a slice of {kind} has {max(1, chip.dimensions)} dimensions, {name!r} has {len(shape)}"
    )
  count = math.prod(shape) * chip.devices
  if not chip.dimensions:
    return Topology(name, kind, shape, count, None, "plans for GPUs are estimated")
  if not devices:
    return Topology(name, kind, shape, count, None)
  if importlib.util.find_spec("libtpu") is None:
    return Topology(name, kind, shape, count, None, f"not compiled: libtpu is not installed ({INSTALL})")
  from jax.experimental import topologies

  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # without a TPU there is no metadata server
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # concurrent plans do not conflict
  try:
    with _quiet():
      devices_of_slice = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except Exception as error:
    line = str(error).strip().splitlines()[0]
    raise UserError(f"--topology: {name}: libtpu does not support this slice ({line[:200]})") from error
  return Topology(name, kind, shape, len(devices_of_slice), devices_of_slice)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides the standard error of C++ code, where libtpu reports at length that there is no TPU."""
  kept = os.dup(2)
  nothing = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nothing, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nothing)
