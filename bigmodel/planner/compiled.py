"""The plan of one run: the real training step, compiled for the chips that it is meant for."""

import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax

from bigmodel import hardware, models, optim, parallel, tasks, train
from bigmodel.config import Config
from bigmodel.parallel.topology import Topology
from bigmodel.planner import analytic, hlo
from bigmodel.train.programs.single import Single

Facts = dict[str, Any]


def plan(
  config: Config, topology: Topology, prices: dict[str, float], compile_step: bool = True, memory: bool = True
) -> Facts:
  """What one run costs on a topology, as `plan --json` prints it."""
  counts = models.counts_of(config)
  sizes = parallel.mesh_sizes(config, topology.count)
  used = math.prod(sizes.values())
  tokens = train.batch_tokens(config)
  estimate = analytic.estimate(config, sizes, topology.chip, memory)
  facts: Facts = {
    "topology": topology.name,
    "chips": topology.chips,
    "devices": used,
    "compute_dtype": config.train.compute_dtype,
    "mesh": {axis: size for axis, size in sizes.items() if size > 1},
    "notes": parallel.notes(config, sizes, topology.count),
    "tokens_per_step": tokens,
    "steps": train.steps_of(config),
    "full_steps": train.tokens_at(config, train.steps_of(config)) / tokens,  # fewer where batches grow
    **counts.params(),
    "flops_per_step": counts.flops(tokens, config.parallel.remat),
    "analytic": estimate,
    "compiled": None,
    "why_not_compiled": topology.why_not,
  }
  if compile_step and topology.devices is not None:
    facts["compiled"] = compiled(config, topology)
  return facts | outcome(facts, topology, prices)


def plan_all(jobs: Sequence[tuple[str, str, Config]], topology: Topology, prices: dict[str, float]) -> Facts:
  """Plans runs of a study, as (role, name, config); the largest is compiled, the others are planned by arithmetic."""
  rows = []
  size = lambda job: models.counts_of(job[2]).params_total
  largest = max(range(len(jobs)), key=lambda index: size(jobs[index]))
  for index, (role, name, config) in enumerate(jobs):
    facts = plan(config, topology, prices, compile_step=index == largest)
    rows.append(facts | {"role": role, "name": name, "tokens": train.tokens_at(config, facts["steps"])})
  after = [row for row in rows if row["role"] == "target"]
  before = [row for row in rows if row["role"] != "target"]
  costs = [row["cost"] for row in rows]
  total = {
    "runs": len(rows),
    "hours": sum(row["hours"] for row in rows),
    "chip_hours": sum(row["chip_hours"] for row in rows),
    "cost": None if None in costs else sum(costs),
    "critical_path_hours": max((r["hours"] for r in before), default=0.0) + sum(r["hours"] for r in after),
    "fits": all(row["fits"] is not False for row in rows),
  }
  return {"topology": topology.name, "runs": rows, "total": total}


def outcome(facts: Facts, topology: Topology, prices: dict[str, float]) -> Facts:
  """Memory, time and money: from the compiled step where there is one, from arithmetic elsewhere."""
  source = facts["compiled"] or facts["analytic"]
  chip = topology.chip
  limit = chip.memory / chip.devices if chip else None
  flops = facts["flops_per_step"]
  used, dtype = facts["devices"], facts["compute_dtype"]
  peak = used * chip.peak(dtype) / chip.devices if chip else hardware.peak_flops(jax.devices()[:used], dtype)
  compute = max(flops["flops_hardware"] / peak / analytic.EFFICIENCY, source["cycle_seconds"] or 0.0)
  overlapping = sum(c["seconds"] for c in source["collectives"] if c["overlaps"])
  waiting = sum(c["exposed"] for c in source["collectives"])
  bubble = source["bubble"]
  seconds = max(compute / (1 - bubble), overlapping) + waiting
  hours = seconds * facts["full_steps"] / 3600
  price = prices.get(topology.kind)
  return {
    "peak_bytes": source["peak_bytes"],
    "memory_bytes": limit,
    "fits": None if limit is None else "refused" not in source and source["peak_bytes"] <= limit,
    "compute_seconds": compute,
    "collective_seconds": sum(c["seconds"] for c in source["collectives"]),
    "step_seconds": seconds,
    "mfu": flops["flops_exact"] / seconds / (peak * topology.count / used),  # idle devices are paid for, too
    "tokens_per_second": facts["tokens_per_step"] / seconds,
    "hours": hours,
    "chip_hours": hours * topology.chips,
    "price_per_chip_hour": price,
    "cost": None if price is None else hours * topology.chips * price,
  }


def compiled(config: Config, topology: Topology) -> Facts:
  """Compiles the training step and reads what the compiler says of it."""
  began = time.perf_counter()
  mesh = parallel.make_mesh(config, devices=topology.devices)
  rows = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.batch_sharding(mesh)),
    tasks.batch_shape(config, config.train.batch_size),
  )
  one = parallel.replicated(mesh)
  h = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype, sharding=one), optim.hyperparameters(config, 1))
  try:
    program = Single(config, mesh).lower(rows, h).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return _too_large(str(error), time.perf_counter() - began)
  memory, text = program.memory_analysis(), program.as_text()
  assert memory is not None, "the compilers for CPUs, GPUs and TPUs tell it"
  assert text is not None, "the compilers for CPUs, GPUs and TPUs give it"
  read = hlo.read(text)
  chip = topology.chip
  places = [tuple(getattr(d, "coords", None) or (d.id,)) for d in mesh.devices.flat]
  host = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
  return {
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "peak_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    "host_bytes": host,
    "collectives": collectives(read, places, topology),
    "cycle_seconds": read.cycles / chip.clock if chip and chip.clock and read.cycles else None,
    "bubble": analytic.bubble(config, parallel.mesh_sizes(config, topology.count)),
    "compile_seconds": time.perf_counter() - began,
  }


def _too_large(error: str, seconds: float) -> Facts:
  """What is left to say of a step that the compiler refused: how much it asked for."""
  asked = re.search(r"(?:HLO temporaries \(|Used )([\d.]+)([GM])", error)
  number, unit = asked.groups() if asked else ("0", "G")
  size = float(number) * (2**30 if unit == "G" else 2**20)
  return {
    "argument_bytes": None,
    "temporary_bytes": None,
    "peak_bytes": size or float("1e18"),
    "host_bytes": 0,
    "collectives": [],
    "cycle_seconds": None,
    "bubble": 0.0,
    "compile_seconds": seconds,
    "refused": error.splitlines()[0][:300],
  }


def collectives(read: hlo.Program, places: list[tuple[int, ...]], topology: Topology) -> list[Facts]:
  """Collectives by kind, group size and whether they overlap: bytes that a device sends a step, and their seconds."""
  empty = {"bytes": 0.0, "seconds": 0.0, "count": 0, "exposed": 0.0}
  rows: dict[tuple, dict[str, float]] = defaultdict(empty.copy)
  for one in read.collectives:
    row = rows[one.kind, len(one.group), one.overlaps]
    row["bytes"] += one.sent * one.times
    row["count"] += one.times
    members = [places[i] for i in one.group]
    varying = sum(len({place[axis] for place in members}) > 1 for axis in range(len(places[0])))
    seconds = analytic.wire_seconds(one.kind, one.sent, len(members), max(1, varying), topology.chip)
    row["seconds"] += one.times * seconds
    row["exposed"] += 0.0 if one.overlaps else one.times * seconds
  return [
    {"kind": kind, "group": size, "overlaps": overlaps, **row}
    for (kind, size, overlaps), row in sorted(rows.items(), key=lambda item: -item[1]["bytes"])
  ]
