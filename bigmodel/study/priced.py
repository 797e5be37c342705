"""The plan of a study: its runs priced, grouped into programs, and added up."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bigmodel.designs import branches
from bigmodel.designs.design import Planned
from bigmodel.planner import price as pricing
from bigmodel.study import folder
from bigmodel.train import programs
from bigmodel.train.run import Run, now
from bigmodel.workers import packs

Facts = dict[str, Any]


def plan(
  name: str,
  runs: Mapping[str, Run],
  planned: Mapping[str, Sequence[Planned]],
  targets: Sequence[Run],
  known: Facts | None = None,
  workers: int = 1,
  machines: int = 1,
  on_cluster: bool = False,
) -> Facts:
  """plan.json of runs by id, of what each was planned for, and of the candidates for the target.

  Of runs that a cluster will train this machine times the smallest alone: it may not hold the others.
  """
  roles = {run_id: sorted({one.role for one in planned[run_id]}) for run_id in runs}
  if known is not None and set(runs) <= {run["run_id"] for run in known["runs"]}:
    named = [{"run_id": run_id, "roles": own} for run_id, own in roles.items()]
    return known | {"runs": folder.merge(known, {"runs": named, "groups": []})["runs"]}
  old = {run["run_id"] for run in known["runs"]} if known else set()  # what was planned keeps its program and price
  added = {run_id: run for run_id, run in runs.items() if run_id not in old}
  leaving = branches.find(added)  # of a trunk that was planned before, it may be too late to leave
  # Trunks come before what leaves them; what trains together begins at one step.
  begins = {run_id: leaving[run_id].step if run_id in leaving else 0 for run_id in added}
  parts = [[run for run in added.values() if begins[run.run_id] == step] for step in sorted({*begins.values()})]
  grouped = [ids for part in parts for ids in packs.group(part, workers, machines)]
  together = {}  # members of the pack in which a run will train here
  for ids in grouped:
    for pack in packs.cut([added[run_id] for run_id in ids]):
      together |= dict.fromkeys((run.run_id for run in pack), len(pack))
  calibration, compiled = pricing.calibrate([*added.values(), *targets], together, on_cluster)
  rows: list[Facts] = [{"run_id": run_id, "roles": roles[run_id]} for run_id in runs if run_id in old]
  for run_id, run in added.items():
    one = planned[run_id][0]
    about = {"run_id": run_id, "roles": roles[run_id], "budget": one.budget, "overrides": one.overrides}
    about |= msgspec.to_builtins(pricing.price(run, calibration, packed=together[run_id] > 1))
    if branch := leaving.get(run_id):
      about["trunk"] = dataclasses.asdict(branch)
      about["expected_seconds"] *= 1 - branch.step / run.steps
    rows.append(about)
  costs = {row["run_id"]: row["expected_seconds"] for row in rows if row["run_id"] in added}
  groups = []
  for ids in grouped:
    members = {together[run_id]: added[run_id].config for run_id in ids}  # a group's runs differ in nothing else
    needed = {programs.key(config, count) for count, config in members.items()} - compiled
    compiled |= needed  # once on this machine
    seconds = sum(costs[i] for i in ids) + len(needed) * calibration.compile_seconds
    groups.append({"run_ids": ids, "expected_seconds": seconds})
  new = {
    "study": name,
    "planned_at": now(),
    "calibration": dataclasses.asdict(calibration),
    "runs": rows,
    "groups": groups,
    "target": _price_target(targets, calibration, compiled),
  }
  merged = folder.merge(known, new) if known else new
  return merged | {"total": _totals(merged)}


def _price_target(targets: Sequence[Run], calibration: pricing.Calibration, compiled: set[str]) -> Facts | None:
  """The dearest of the candidates: which one it will be is for the fit to say."""
  if not targets:
    return None
  costs = [(pricing.price(run, calibration), programs.key(run.config) in compiled) for run in targets]
  dearest, known = max(costs, key=lambda pair: pair[0].expected_seconds)
  seconds = dearest.expected_seconds + (0 if known else calibration.compile_seconds)
  return msgspec.to_builtins(msgspec.structs.replace(dearest, expected_seconds=seconds))


def _totals(plan_: Facts) -> Facts:
  runs = plan_["runs"] + ([plan_["target"]] if plan_["target"] else [])
  target_seconds = plan_["target"]["expected_seconds"] if plan_["target"] else 0.0
  return {
    "runs": len(runs),
    "flops_6nd": sum(run["flops_6nd"] for run in runs),
    "flops_exact": sum(run["flops_exact"] for run in runs),
    "tokens": sum(run["tokens"] for run in runs),
    "flops_6nd_shared": sum(run["flops_6nd"] * run["trunk"]["step"] / run["steps"] for run in runs if "trunk" in run),
    "disk_bytes": sum(run["disk_bytes"] for run in runs),
    "expected_seconds": sum(group["expected_seconds"] for group in plan_["groups"]) + target_seconds,
  }
