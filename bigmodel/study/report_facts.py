"""Gathers the contents of a study's report from its folder."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from etils import epath

from bigmodel import record, tasks
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json
from bigmodel.record import Record
from bigmodel.study import curves, folder, folds, leaderboard
from bigmodel.study import plan as plans
from bigmodel.study.folder import About
from bigmodel.study.plan import Plan
from bigmodel.tasks.metrics import LARGER, main
from bigmodel.train.results import as_measured


class PlanError(msgspec.Struct, frozen=True):
  """Ratios of actual to planned seconds: of all runs together, and of single runs."""

  runs: int
  total: float
  median: float
  interval90: tuple[float, float]


def gather(workdir: epath.Path, forecast: JsonObject | None) -> JsonObject:
  """Returns the contents of report.json; `forecast` is the sealed forecast with its score."""
  about, plan = folder.read_about(workdir), plans.read(workdir)
  if plan is None:
    raise UserError(f"{workdir}: the study has no plan yet; run bigmodel study")
  path = workdir / "fits.json"
  fits = read_json(path) if path.exists() else {"laws": [], "optimum": [], "noise_floor": None, "scans": []}
  records = record.collect(workdir)
  measured = [as_measured(one, about.measure) for one in records]
  facts = {
    "study": about.name,
    "question": about.question,
    "convention": about.convention,
    "unit": "tokens" if about.config["data.kind"] == "text" else "examples",
    "loss": _axis_title(about),
    "metrics": sorted({name for one in records for name in main(one.metrics)}),
    "runs": _runs(plan, measured),
    "sweep": None if about.laws else leaderboard.board(plan.runs, measured),
    "cross_validation": folds.cells(plan.runs, records, about.config),
    "planned": [{"run_id": run.run_id, "overrides": run.overrides} for run in plan.runs],
    "cost": _cost(plan, records),
    "plan_error": plan_error(plan, records),
    "laws": fits["laws"],
    "forecast": forecast,
    "noise_floor": fits["noise_floor"],
    "optimum": fits["optimum"],
    "scans": fits["scans"],
    "programs": [group.run_ids for group in plan.groups],
    "provenance": _provenance(records),
  } | ({"loss_curves": curves.forecasts(workdir, about.schedules)} if about.schedules else {})
  return msgspec.json.decode(msgspec.json.encode(facts))  # the types of a parsed report.json


def _runs(plan: Plan, records: Sequence[Record]) -> list[JsonObject]:
  """Returns the records with the roles of their runs, smallest first and the target last."""
  roles = {run.run_id: run.roles for run in plan.runs}
  ordered = sorted(records, key=lambda one: (one.run_id not in roles, one.flops_6nd, one.params_total))
  return [record.to_json(one) | {"roles": roles.get(one.run_id, ("target",))} for one in ordered]


def _cost(plan: Plan, records: Sequence[Record]) -> JsonObject:
  return {
    "expected_seconds": plan.total.expected_seconds,
    "actual_seconds": sum(one.seconds for one in records),
    "flops": {name: sum(one.flops(name) for one in records) for name in ("flops_6nd", "flops_exact")},
    "expected_flops": plan.total.flops_6nd,
    "tokens": sum(one.tokens for one in records),
    "shared": _shared(records),
  }


def _shared(records: Sequence[Record]) -> float:
  """Returns the share of all FLOPs that branches saved, because their trunks had spent them."""
  total = sum(one.flops_6nd for one in records)
  shared = sum(one.flops_6nd * one.trunk.step / one.steps for one in records if one.steps)
  return shared / total if total else 0.0


def _axis_title(about: About) -> str:
  """Returns the name of the quantity that the laws describe: the loss or the study's measure."""
  if about.measure == "loss":
    return tasks.loss_title(str(about.config["task.name"]))
  return f"1 - {about.measure}" if about.measure.startswith(LARGER) else about.measure


def plan_error(plan: Plan, records: Sequence[Record]) -> PlanError | None:
  """Returns how far the plan was off, or None if no planned run has ended."""
  planned = {run.run_id: run.expected_seconds for run in plan.runs}
  pairs = [(one.seconds, planned[one.run_id]) for one in records if planned.get(one.run_id)]
  if not pairs:
    return None
  ratios = np.array([actual / expected for actual, expected in pairs])
  total = sum(actual for actual, _ in pairs) / sum(expected for _, expected in pairs)
  low, middle, high = (float(x) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
  return PlanError(len(pairs), float(total), middle, (low, high))


def _provenance(records: Sequence[Record]) -> dict[str, list[object]]:
  """Returns the versions, devices and data of the runs: one value each unless runs differ."""

  def different(value_of: Callable[[Record], object]) -> list[object]:
    values = [value_of(one) for one in records]
    return [value for index, value in enumerate(values) if value not in values[:index]]

  return {
    "versions": different(lambda one: one.versions),
    "devices": different(lambda one: one.devices),
    "data_sha256": different(lambda one: one.data_sha256),
  }
