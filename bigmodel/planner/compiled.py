"""Compiles the real training step for chips that need not be present."""

import dataclasses
import re
import time

import jax

from bigmodel import optim, parallel, tasks
from bigmodel.config import Config
from bigmodel.parallel.topology import Topology
from bigmodel.planner import analytic, hlo, traffic
from bigmodel.planner.traffic import CollectiveCost
from bigmodel.train.programs.single import Single

UNKNOWN_BYTES = 1e18  # more than any device has; for steps that the compiler refuses without naming their size


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """One training step of one device, as the compiler reports it."""

  argument_bytes: int | None  # None where the compiler refused the step
  temporary_bytes: int | None
  peak_bytes: float
  host_bytes: int
  collectives: list[CollectiveCost]
  cycle_seconds: float | None  # from the compiler's estimate of cycles; None if it has none
  bubble: float  # the share of its time that a stage of a pipeline is idle
  compile_seconds: float
  refused: str | None = None  # the compiler's reason


def compile_step(config: Config, topology: Topology) -> CompiledStep:
  """Compiles the training step for a topology and reads the compiler's figures."""
  began = time.perf_counter()
  mesh = parallel.make_mesh(config, devices=topology.devices)
  rows = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.batch_sharding(mesh)),
    tasks.batch_shape(config, config.train.batch_size),
  )
  everywhere = parallel.replicated(mesh)
  h = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype, sharding=everywhere), optim.hyperparameters(config, 1))
  try:
    program = Single(config, mesh).lower(rows, h).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return _too_large(str(error), time.perf_counter() - began)
  memory, text = program.memory_analysis(), program.as_text()
  assert memory is not None, "the compilers for CPUs, GPUs and TPUs report it"
  assert text is not None, "the compilers for CPUs, GPUs and TPUs return it"
  read, chip = hlo.read(text), topology.chip
  places = [tuple(getattr(device, "coords", None) or (device.id,)) for device in mesh.devices.flat]
  return CompiledStep(
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    host_bytes=memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    collectives=collectives(read, places, topology),
    cycle_seconds=read.cycles / chip.clock if chip and chip.clock and read.cycles else None,
    bubble=analytic.bubble(config, parallel.mesh_sizes(config, topology.count)),
    compile_seconds=time.perf_counter() - began,
  )


def _too_large(error: str, seconds: float) -> CompiledStep:
  """A step that the compiler refused, with the memory that it would need."""
  needed = re.search(r"(?:HLO temporaries \(|Used )([\d.]+)([GM])", error)
  number, unit = needed.groups() if needed else ("0", "G")
  size = float(number) * (2**30 if unit == "G" else 2**20)
  return CompiledStep(
    argument_bytes=None,
    temporary_bytes=None,
    peak_bytes=size or UNKNOWN_BYTES,
    host_bytes=0,
    collectives=[],
    cycle_seconds=None,
    bubble=0.0,
    compile_seconds=seconds,
    refused=error.splitlines()[0][:300],
  )


def collectives(read: hlo.Program, places: list[tuple[int, ...]], topology: Topology) -> list[CollectiveCost]:
  """Sums the collectives of a compiled step by kind, size of the group and overlap; largest first.

  `places` are the coordinates of the mesh's devices.
  """
  costs: dict[tuple[str, int, bool], CollectiveCost] = {}
  for collective in read.collectives:
    members = [places[i] for i in collective.group]
    varying = sum(len({place[axis] for place in members}) > 1 for axis in range(len(places[0])))
    group = traffic.Group(len(members), max(1, varying))
    seconds = collective.times * traffic.wire_seconds(collective.kind, collective.sent, group, topology.chip)
    key = collective.kind, len(members), collective.overlaps
    before = costs.get(key, CollectiveCost(*key, bytes=0.0, seconds=0.0, count=0, exposed=0.0))
    costs[key] = dataclasses.replace(
      before,
      bytes=before.bytes + collective.sent * collective.times,
      seconds=before.seconds + seconds,
      count=before.count + collective.times,
      exposed=before.exposed + (0.0 if collective.overlaps else seconds),
    )
  return sorted(costs.values(), key=lambda cost: -cost.bytes)
