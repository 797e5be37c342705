"""A study's folder: study.json and plan.json, which accept added runs and refuse changed ones."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from bigmodel import record
from bigmodel.config import difference, nearest, require
from bigmodel.errors import UserError
from bigmodel.files import read_json
from bigmodel.tasks.metrics import as_loss
from bigmodel.train.configs import identity
from bigmodel.train.run import read_status


def check_study(folder: epath.PathLike, study: dict[str, Any]) -> None:
  """Refuses a folder that holds a run, or the study of another config, with the difference."""
  folder = epath.Path(folder)
  if (folder / "config.json").exists():
    raise UserError(f"{folder} holds a run; choose another --workdir")
  if not (folder / "study.json").exists():
    return
  known = read_json(folder / "study.json")
  fixed = ("name", "convention", "target_flops", "measure")
  same = lambda s: {name: s[name] for name in fixed} | identity(s["config"])
  changed = difference(same(known), same(study))
  if changed:
    raise UserError(f"{folder} holds another study ({changed}); choose another --workdir")


def read_plan(folder: epath.PathLike) -> dict[str, Any] | None:
  path = epath.Path(folder) / "plan.json"
  return read_json(path) if path.exists() else None


def check_runs(known: dict[str, Any], ids: set[str], folder: epath.PathLike) -> None:
  """Refuses a design that lost runs of the fit; runs for noise and scans may move when it grows."""
  lost = [run for run in known["runs"] if run["run_id"] not in ids and "fit" in run["roles"]]
  if lost:
    raise UserError(
      f"{folder}: the study no longer has {len(lost)} of its runs, such as {lost[0]['run_id']}"
      f" ({lost[0]['overrides']}); a study's runs are added to, not changed: choose another --workdir"
    )


def merge(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  """The plan with added runs and roles; what was planned keeps its program."""
  roles = {run["run_id"]: run["roles"] for run in new["runs"]}
  kept = [run | {"roles": sorted({*run["roles"], *roles.get(run["run_id"], [])})} for run in known["runs"]]
  old = {run["run_id"] for run in kept}
  added = [run for run in new["runs"] if run["run_id"] not in old]
  return new | {"runs": kept + added, "groups": known["groups"] + new["groups"]}


def of_role(workdir: epath.PathLike, role: str) -> list[dict[str, Any]]:
  """The records of a study that were planned for `role`, in the order of the plan, as its laws see them."""
  planned = (read_plan(workdir) or {"runs": []})["runs"]
  ended = [(row, record.read(epath.Path(workdir) / "runs" / row["run_id"])) for row in planned]
  measure = read_json(epath.Path(workdir) / "study.json")["measure"] if planned else "loss"
  return [as_measured(one, measure) for row, one in ended if one is not None and role in row["roles"]]


def trials(workdir: epath.PathLike, plan: dict[str, Any], measure: str) -> list[tuple[dict[str, Any], float | None]]:
  """What a plan's runs were and came to, in its order."""
  ended = [(row, record.read(epath.Path(workdir) / "runs" / row["run_id"])) for row in plan["runs"]]
  own = lambda row: {name: tuple(x) if isinstance(x, list) else x for name, x in row["overrides"].items()}
  value = lambda one: as_measured(one, measure)["loss_eval"] if one and one["status"] == "finished" else None
  return [(own(row), value(one)) for row, one in ended]


def as_measured(one: dict[str, Any], measure: str) -> dict[str, Any]:
  """The record with what the study measures in the place of the loss: a metric, or 1 less it where more is better."""
  if measure == "loss" or one["loss_eval"] is None:
    return one
  return {**one, "loss_eval": measured_value(one["loss_eval"], one["metrics"], measure), "loss_eval_stderr": None}


def measured_value(loss: float, metrics: Mapping[str, float], measure: str) -> float:
  """What a study measures as something of which less is better: the loss, a metric, or 1 less it."""
  if measure == "loss":
    return loss
  require(measure in metrics, f"get_study: measure: no {measure!r}{nearest(measure, metrics)}")
  return as_loss(measure, metrics[measure])


def status(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """One row a run of a study's folder (or of a run's): its state, step and loss."""
  workdir = epath.Path(workdir)
  if (workdir / "config.json").exists():
    folders = [workdir]
  elif (workdir / "study.json").exists():
    planned = (read_plan(workdir) or {"runs": []})["runs"]
    folders = [workdir / "runs" / run["run_id"] for run in planned]
    folders += [f for f in sorted((workdir / "runs").glob("*")) if f not in folders]
  else:
    raise UserError(f"--workdir: {workdir} holds neither a study nor a run")
  rows = []
  for one in folders:
    known, ended = read_status(one), record.read(one)
    rows.append(
      {
        "run_id": one.name,
        **known,
        "loss_eval": ended["loss_eval"] if ended else None,
        "error": ended["error"] if ended else "",
      }
    )
  return rows


def progress(workdir: epath.PathLike, rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Of the rows of a study's `status`: how many runs are in which state, what they cost, and what is left."""
  plan = read_plan(workdir) or {"runs": [], "total": {"expected_seconds": 0.0}}
  planned = {run["run_id"]: run["expected_seconds"] for run in plan["runs"]}
  states = [row["state"] for row in rows]
  share = lambda row: 1.0 if row["state"] in record.STATUSES else row["step"] / max(1, row.get("steps") or 1)
  done = sum(planned.get(row["run_id"], 0.0) * share(row) for row in rows)
  spent = sum(row["seconds"] for row in rows)
  # What is left at the pace so far, by as many at once as are under way.
  pace = spent / done if done else 1.0
  left = (sum(planned.values()) - done) * pace / max(1, states.count("running"))
  return {
    "states": {state: states.count(state) for state in dict.fromkeys(states)},
    "failures": [{"run_id": row["run_id"], "error": row["error"] or row["state"]} for row in rows
                 if row["state"] in ("failed", "diverged")],
    "seconds": spent,
    "expected_seconds": sum(planned.values()),
    "expected_seconds_of_done": done,
    "seconds_left": max(0.0, left),
  }  # fmt: skip
