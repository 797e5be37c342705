"""The plan of a run or a study on a topology: memory, time and money."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from bigmodel import hardware, models, parallel, train
from bigmodel.accounting import Flops, Params
from bigmodel.config import Config
from bigmodel.parallel.topology import Topology
from bigmodel.planner import analytic
from bigmodel.planner.analytic import StepEstimate
from bigmodel.planner.compiled import CompiledStep, compile_step


@dataclasses.dataclass(frozen=True)
class Costs:
  """Memory, time and money of a run, from the compiled step if there is one and otherwise by arithmetic."""

  peak_bytes: float  # on one device
  memory_bytes: float | None  # of one device; None if unknown
  fits: bool | None
  compute_seconds: float  # per step
  collective_seconds: float  # per step
  step_seconds: float
  mfu: float  # exact FLOPs as a share of the peak of all devices
  tokens_per_second: float
  hours: float
  chip_hours: float
  price_per_chip_hour: float | None  # dollars
  cost: float | None  # dollars


@dataclasses.dataclass(frozen=True)
class Work:
  """The amount of computation of a run, and its number of devices."""

  devices: int
  compute_dtype: str
  tokens_per_step: int
  steps: int
  full_steps: float  # the tokens in units of the last batch size; fewer than `steps` if batches grow
  params: Params
  flops_per_step: Flops


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """One run on a topology."""

  topology: str
  chips: int
  mesh: dict[str, int]  # axes that are larger than 1
  notes: list[str]
  work: Work
  analytic: StepEstimate
  compiled: CompiledStep | None
  why_not_compiled: str
  costs: Costs


@dataclasses.dataclass(frozen=True)
class StudyRun:
  """One run of a study on a topology."""

  role: str
  name: str
  tokens: int
  plan: RunPlan


@dataclasses.dataclass(frozen=True)
class Total:
  """Time, money and fit of all runs of a study together."""

  runs: int
  hours: float
  chip_hours: float
  cost: float | None  # dollars
  critical_path_hours: float  # if all fitted runs train at once, each on this topology, and then the target
  fits: bool


@dataclasses.dataclass(frozen=True)
class StudyPlan:
  """A study on a topology, its runs one after another."""

  study: str
  topology: str
  runs: list[StudyRun]
  total: Total


def plan_run(
  config: Config, topology: Topology, prices: Mapping[str, float], compiles: bool = True, memory: bool = True
) -> RunPlan:
  """Plans one run on a topology; `prices` are dollars per chip-hour by kind.

  With `compiles` the step is compiled, if a compiler is installed. Without `memory` no bytes are estimated.
  """
  counts = models.counts_of(config)
  sizes = parallel.mesh_sizes(config, topology.count)
  tokens, steps = train.batch_tokens(config), train.steps_of(config)
  work = Work(
    devices=math.prod(sizes.values()),
    compute_dtype=config.train.compute_dtype,
    tokens_per_step=tokens,
    steps=steps,
    full_steps=train.tokens_at(config, steps) / tokens,
    params=counts.params(),
    flops_per_step=counts.flops(tokens, config.parallel.remat),
  )
  estimate = analytic.estimate(config, sizes, topology.chip, memory)
  compiled = compile_step(config, topology) if compiles and topology.devices is not None else None
  return RunPlan(
    topology=topology.name,
    chips=topology.chips,
    mesh={axis: size for axis, size in sizes.items() if size > 1},
    notes=parallel.notes(config, sizes, topology.count),
    work=work,
    analytic=estimate,
    compiled=compiled,
    why_not_compiled=topology.why_not,
    costs=_costs(work, compiled or estimate, topology, prices),
  )


def _costs(work: Work, step: StepEstimate | CompiledStep, topology: Topology, prices: Mapping[str, float]) -> Costs:
  chip = topology.chip
  limit = chip.memory / chip.devices if chip else None
  if chip:
    peak = work.devices * chip.peak(work.compute_dtype) / chip.devices
  else:
    peak = hardware.peak_flops(jax.devices()[: work.devices], work.compute_dtype)
  by_flops = work.flops_per_step["flops_hardware"] / peak / analytic.EFFICIENCY
  compute = max(by_flops, step.cycle_seconds or 0.0)
  overlapping = sum(collective.seconds for collective in step.collectives if collective.overlaps)
  seconds = max(compute / (1 - step.bubble), overlapping) + sum(collective.exposed for collective in step.collectives)
  hours, price = seconds * work.full_steps / 3600, prices.get(topology.kind)
  return Costs(
    peak_bytes=step.peak_bytes,
    memory_bytes=limit,
    fits=None if limit is None else step.refused is None and step.peak_bytes <= limit,
    compute_seconds=compute,
    collective_seconds=sum(collective.seconds for collective in step.collectives),
    step_seconds=seconds,
    # Idle devices are paid for, too.
    mfu=work.flops_per_step["flops_exact"] / seconds / (peak * topology.count / work.devices),
    tokens_per_second=work.tokens_per_step / seconds,
    hours=hours,
    chip_hours=hours * topology.chips,
    price_per_chip_hour=price,
    cost=None if price is None else hours * topology.chips * price,
  )


def plan_study(
  study: str, jobs: Sequence[tuple[str, str, Config]], topology: Topology, prices: Mapping[str, float]
) -> StudyPlan:
  """Plans the runs of a study, given as (role, name, config). Only the largest is compiled."""
  sizes = [models.counts_of(config).params_total for _, _, config in jobs]
  largest = sizes.index(max(sizes))
  runs = []
  for index, (role, name, config) in enumerate(jobs):
    run = plan_run(config, topology, prices, compiles=index == largest)
    runs.append(StudyRun(role, name, train.tokens_at(config, run.work.steps), run))
  after = [run.plan.costs.hours for run in runs if run.role == "target"]
  before = [run.plan.costs.hours for run in runs if run.role != "target"]
  costs = [run.plan.costs for run in runs]
  total = Total(
    runs=len(runs),
    hours=sum(cost.hours for cost in costs),
    chip_hours=sum(cost.chip_hours for cost in costs),
    cost=None if any(cost.cost is None for cost in costs) else sum(cost.cost or 0.0 for cost in costs),
    critical_path_hours=max(before, default=0.0) + sum(after),
    fits=all(cost.fits is not False for cost in costs),
  )
  return StudyPlan(study, topology.name, runs, total)
