"""The tables of `bigmodel plan`, and its documents for --json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bigmodel.cli.console import Facts, Output

if TYPE_CHECKING:
  from bigmodel.planner.plan import RunPlan, StudyPlan
  from bigmodel.planner.search import Layout

SMALLEST = 1e5  # bytes; smaller collectives are not shown


def show_study_here(facts: Facts, name: str, output: Output) -> None:
  """Prints the plan of a study on this machine: its runs and its target."""
  from bigmodel.train.display import duration

  fields = ("params_total", "tokens", "flops_6nd", "expected_seconds")
  rows = [(run["run_id"], ", ".join(run["roles"]), *(run[field] for field in fields)) for run in facts["runs"]]
  if facts["target"]:
    rows.append(("target", "at most", *(facts["target"][field] for field in fields)))
  total = facts["total"]
  flops, seconds = total["flops_6nd"], total["expected_seconds"]
  title = f"{name}: {total['runs']} runs, {flops:.3g} FLOPs (6ND), {duration(seconds)} here"
  output.table(title, ("run", "role", "N", "D", "6ND", "seconds"), rows)


def show_study(plan: "StudyPlan", output: Output) -> None:
  """Prints the plan of a study on a topology."""
  rows = [
    (
      run.role,
      run.name,
      run.plan.work.params["params_total"],
      run.tokens,
      run.plan.costs.step_seconds,
      run.plan.costs.hours,
      run.plan.costs.chip_hours,
      run.plan.costs.fits,
    )
    for run in plan.runs
  ]
  total = plan.total
  cost = "" if total.cost is None else f", {total.cost:,.0f} dollars"
  title = f"{plan.study} on {plan.topology}: {total.chip_hours:.4g} chip-hours{cost};"
  title += f" critical path {total.critical_path_hours:.4g} h"
  output.table(title, ("role", "run", "N", "tokens", "step s", "hours", "chip-hours", "fits"), rows)
  output.notes(note for run in plan.runs for note in run.plan.notes)


def show_layouts(layouts: "Sequence[Layout]", topology: str, output: Output) -> None:
  """Prints layouts, and the best one as options for the command line."""
  rows = [
    (
      _name(layout.overrides),
      layout.plan.costs.fits,
      layout.plan.costs.peak_bytes / 1e9,
      layout.plan.costs.step_seconds,
      layout.plan.costs.mfu,
      layout.plan.costs.hours,
      layout.plan.compiled is not None,
    )
    for layout in layouts
  ]
  columns = ("overrides", "fits", "peak GB", "step s", "MFU", "hours", "compiled")
  output.table(f"layouts on {topology}, best first", columns, rows)
  output.write(" ".join(f"--config.{name}={value}" for name, value in layouts[0].overrides.items()) + "\n")


def show_run(plan: "RunPlan", output: Output) -> None:
  """Prints the plan of one run on a topology: memory, time, cost and collectives."""
  step = plan.compiled or plan.analytic
  rows = [*_memory_rows(plan), *_time_rows(plan, step.cycle_seconds)]
  output.table(f"one run on {plan.topology}", ("quantity", "value"), rows)
  output.notes(plan.notes)
  collectives = [
    (cost.kind, cost.group, cost.overlaps, cost.count, f"{cost.bytes / 1e9:.3f} GB", f"{cost.seconds:.3g} s")
    for cost in step.collectives
    if cost.bytes > SMALLEST
  ]
  columns = ("collective", "devices", "overlaps", "times", "sent per step", "time on the links")
  output.table("collectives of one device", columns, collectives)


def _memory_rows(plan: "RunPlan") -> list[tuple[str, object]]:
  parts, costs = plan.analytic.parts, plan.costs
  activations = sum(value for name, value in parts.items() if name not in ("parameters", "optimizer"))
  compiled = _gigabytes(plan.compiled.peak_bytes) if plan.compiled else plan.why_not_compiled
  return [
    ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "one device"),
    ("parameters", plan.work.params["params_total"]),
    ("parameters on a device", _gigabytes(parts["parameters"])),
    ("optimizer state on a device", _gigabytes(parts["optimizer"])),
    ("activations on a device, by arithmetic", _gigabytes(activations)),
    ("peak, by arithmetic", _gigabytes(plan.analytic.peak_bytes)),
    ("peak, by the compiler", compiled),
    ("memory of a device", _gigabytes(costs.memory_bytes)),
    ("fits", costs.fits),
  ]


def _time_rows(plan: "RunPlan", cycle_seconds: float | None) -> list[tuple[str, object]]:
  costs = plan.costs
  return [
    *((f"{name} per step", value) for name, value in plan.work.flops_per_step.items()),
    ("compiler's cycles", None if cycle_seconds is None else f"{cycle_seconds:.3g} s"),
    ("computation", f"{costs.compute_seconds:.3g} s"),
    ("step", f"{costs.step_seconds:.3g} s"),
    ("MFU (flops_exact)", f"{costs.mfu:.1%}"),
    ("tokens/s", costs.tokens_per_second),
    ("steps", plan.work.steps),
    ("hours", costs.hours),
    ("chip-hours", costs.chip_hours),
    ("cost", None if costs.cost is None else f"{costs.cost:,.0f} dollars"),
  ]


def _gigabytes(value: float | None) -> str | None:
  return None if value is None else f"{value / 1e9:.2f} GB"


def _name(overrides: Mapping[str, int | str]) -> str:
  """The overrides that differ from their defaults, as 'fsdp 64, remat full'."""
  short = {name.split(".")[1]: value for name, value in overrides.items()}
  return ", ".join(f"{name} {value}" for name, value in short.items() if value not in (0, 1))


def run_facts(plan: "RunPlan") -> dict[str, object]:
  """The plan of a run, as --json prints it."""
  facts = dataclasses.asdict(plan)
  work, costs = facts.pop("work"), facts.pop("costs")
  for step in (facts["analytic"], facts["compiled"]):
    if step is not None and step["refused"] is None:
      del step["refused"]
  params = work.pop("params")
  return {**facts, **work, **params, **costs}


def study_facts(plan: "StudyPlan") -> dict[str, object]:
  """The plan of a study, as --json prints it."""
  runs = [run_facts(run.plan) | {"role": run.role, "name": run.name, "tokens": run.tokens} for run in plan.runs]
  return {"study": plan.study, "topology": plan.topology, "runs": runs, "total": dataclasses.asdict(plan.total)}
