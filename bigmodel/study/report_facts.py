"""Everything that the report of a study says, gathered from its folder."""

from typing import Any

import numpy as np
from etils import epath

from bigmodel import record
from bigmodel.errors import UserError
from bigmodel.files import read_json
from bigmodel.study import folder, folds, leaderboard
from bigmodel.tasks.metrics import LARGER, main

Facts = dict[str, Any]
LOSSES = {
  "causal_lm": "loss (nats per token)",
  "masked_lm": "loss (nats per masked token)",
  "seq2seq": "loss (nats per target token)",
  "classification": "loss (nats per example)",
  "contrastive_divergence": "reconstruction (nats per example)",
  "regression": "squared error (of the variance)",
}


def gather(workdir: epath.Path, forecast: Facts | None) -> Facts:
  """Everything that the report says, as report.json has it."""
  about, plan = read_json(workdir / "study.json"), folder.read_plan(workdir)
  if plan is None:
    raise UserError(f"{workdir}: the study has no plan yet; run bigmodel study")
  path = workdir / "fits.json"
  fits = read_json(path) if path.exists() else {"laws": [], "optimum": [], "noise_floor": None, "scans": []}
  roles = {run["run_id"]: run["roles"] for run in plan["runs"]}
  records = record.collect(workdir)
  measured = [folder.as_measured(one, about["measure"]) for one in records]
  runs = [one | {"roles": roles.get(one["run_id"], ["target"])} for one in measured]
  runs.sort(key=lambda r: (r["roles"] == ["target"], r["flops_6nd"], r["params_total"]))
  return {
    "study": about["name"],
    "question": about["question"],
    "convention": about["convention"],
    "unit": "tokens" if about["config"]["data.kind"] == "text" else "examples",
    "loss": _measured(about),
    "metrics": sorted({name for one in records for name in main(one["metrics"])}),
    "runs": runs,
    "sweep": None if about["laws"] else leaderboard.board(plan["runs"], measured),
    "cross_validation": folds.cells(plan["runs"], records, about["config"]),
    "planned": [{"run_id": run["run_id"], "overrides": run["overrides"]} for run in plan["runs"]],
    "cost": {
      "expected_seconds": plan["total"]["expected_seconds"],
      "actual_seconds": sum(one["seconds"] for one in records),
      "flops": {name: sum(one[name] for one in records) for name in ("flops_6nd", "flops_exact")},
      "expected_flops": plan["total"]["flops_6nd"],
      "tokens": sum(one["tokens"] for one in records),
      "shared": _shared(records),
    },
    "plan_error": plan_error(plan, records),
    "laws": fits["laws"],
    "forecast": forecast,
    "noise_floor": fits["noise_floor"],
    "optimum": fits["optimum"],
    "scans": fits["scans"],
    "programs": [group["run_ids"] for group in plan["groups"]],
    "provenance": _provenance(records),
  }


def _shared(records: list[Facts]) -> float:
  """The share of all FLOPs that branches did not spend, because a trunk had."""
  spent = sum(one["flops_6nd"] for one in records)
  begun = sum(
    one["flops_6nd"] * one["trunk"]["step"] / one["steps"] for one in records if one["trunk"] and one["steps"]
  )
  return begun / spent if spent else 0.0


def _measured(about: Facts) -> str:
  """What the laws are of, and the axes of the figures."""
  name = about["measure"]
  if name == "loss":
    return LOSSES.get(about["config"]["task.name"], "loss")
  return f"1 - {name}" if name.startswith(LARGER) else name


def plan_error(plan: Facts, records: list[Facts]) -> Facts | None:
  """Seconds that runs took over the seconds that were planned for them: of all together, and of single runs."""
  planned = {run["run_id"]: run["expected_seconds"] for run in plan["runs"]}
  known = [(one["seconds"], planned[one["run_id"]]) for one in records if planned.get(one["run_id"])]
  if not known:
    return None
  ratios = np.array([actual / expected for actual, expected in known])
  total = sum(actual for actual, _ in known) / sum(expected for _, expected in known)
  low, middle, high = (float(x) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
  return {"runs": len(known), "total": float(total), "median": middle, "interval90": [low, high]}


def _provenance(records: list[Facts]) -> Facts:
  """Versions, devices and data: one value of each unless runs differ."""
  facts: Facts = {}
  for name in ("versions", "devices", "data_sha256"):
    values = [one[name] for one in records]
    facts[name] = [value for index, value in enumerate(values) if value not in values[:index]]
  return facts
