"""Rounds of designs that look at results before they go on: what workers are to train now lies in plan.json."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from bigmodel.config import require
from bigmodel.designs import halving
from bigmodel.errors import Interrupted
from bigmodel.files import write_json
from bigmodel.parallel import hosts
from bigmodel.study import folder, rungs
from bigmodel.train.run import Run
from bigmodel.train.stop import Stop
from bigmodel.workers import execute, packs
from bigmodel.workers.leases import POLL_SECONDS
from bigmodel.workers.workers import alone

log = logging.getLogger("bigmodel")

NEXT_ROUND_SECONDS = 600.0  # that a worker waits for what a design asks for next
Train = Callable[[list[dict[str, Any]], dict[str, Run]], None]  # groups of runs to where they end or pause


def write(workdir: epath.Path, plan: dict[str, Any], groups: list[dict[str, Any]]) -> None:
  """Tells workers what to train; to be done `alone`."""
  write_json(workdir / "plan.json", plan | {"round": groups})


def end(workdir: epath.Path, runs: Mapping[str, Run], stop: Stop) -> None:
  """Tells workers that nothing more is to come, but where another command is at it: of a design that has grown."""

  def clear() -> None:
    plan = folder.read_plan(workdir) or {}
    known = [one for one in plan.get("round", []) if runs.keys() >= {*one["run_ids"]}]
    if known == plan.get("round") and all(execute.ended(one, runs) for one in known):
      write(workdir, plan, [])

  with alone(workdir, "plan", stop):
    hosts.first(clear)


def next_plan(workdir: epath.Path, before: list[dict[str, Any]] | None, stop: Stop) -> dict[str, Any] | None:
  """The plan as it is now, or after a round once it asks for another, if it does before long; None for a stop."""
  began = time.monotonic()
  while True:
    plan = folder.read_plan(workdir)
    require(plan is not None, f"--worker: {workdir} has no plan yet; begin the study without --worker")
    assert plan is not None
    if before is None or plan.get("round") != before or time.monotonic() - began > NEXT_ROUND_SECONDS:
      return plan
    if stop.requested():
      return None
    time.sleep(POLL_SECONDS)


def wait_for(path: epath.Path, stop: Stop) -> bool:
  """Waits for a file that the command writes between rounds; returns whether it came before long. Stops on a signal."""
  began = time.monotonic()
  while not path.exists():
    if stop.requested():
      raise Interrupted("stopped between runs")
    if time.monotonic() - began > NEXT_ROUND_SECONDS:
      return False
    time.sleep(POLL_SECONDS)
  return True


def halve(
  design: halving.Halving,
  measure: str,
  members: Sequence[Run],
  plan: dict[str, Any],
  workdir: epath.Path,
  train_them: Train,
  split: tuple[int, int, bool],
  stop: Stop,
) -> None:
  """Trains runs from rung to rung; groups that are under way stay as they are: somebody may be at them."""
  if warning := halving.undecayed(design, members):
    log.warning("%s", warning)
  steps = {run.run_id: run.steps for run in members}
  costs = {row["run_id"]: row["expected_seconds"] for row in plan["runs"]}
  reached = dict.fromkeys(steps, 0)

  def one_round(alive: dict[str, Run], until: int) -> None:
    group = lambda ids: {"run_ids": ids, "expected_seconds": 0.0, "until": until}
    with alone(workdir, "plan", stop):
      on_disk = hosts.first(lambda: folder.read_plan(workdir)) or plan
      under_way = on_disk.get("round", [])
      kept = [one for one in under_way if one.get("until") == until and alive.keys() >= {*one["run_ids"]}]
      known = {run_id for one in kept for run_id in one["run_ids"]}
      left = hosts.first(lambda: [i for i in alive if i not in known and not execute.ended(group([i]), alive)])
      groups = kept + [group(ids) for ids in packs.group([alive[i] for i in left], *split[:2])]
      for one in groups:
        shares = [costs[i] * ((until or steps[i]) - reached[i]) / steps[i] for i in one["run_ids"]]
        one["expected_seconds"] = sum(shares)
      if groups:
        hosts.first(lambda: write(workdir, on_disk, groups))
    train_them(groups, alive)
    reached.update(dict.fromkeys(alive, until))

  rungs.run(design, members, measure, one_round)
  end(workdir, {run.run_id: run for run in members}, stop)
