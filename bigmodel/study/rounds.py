"""Rounds of adaptive designs: the field `round` of plan.json lists the groups that workers train now."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from etils import epath

from bigmodel.config import require
from bigmodel.designs import halving
from bigmodel.designs.early_stopping import EarlyStopping
from bigmodel.errors import Interrupted
from bigmodel.parallel import hosts
from bigmodel.study import early_stopping, rungs
from bigmodel.study import plan as plans
from bigmodel.study.plan import Plan, Workforce
from bigmodel.train.leases import POLL_SECONDS
from bigmodel.train.run import Run
from bigmodel.train.stop import Stop
from bigmodel.workers import packs
from bigmodel.workers.groups import Group
from bigmodel.workers.worker import exclusive

log = logging.getLogger("bigmodel")

NEXT_ROUND_SECONDS = 600.0  # how long a worker waits for the next round
Train = Callable[[Sequence[Group], Mapping[str, Run]], None]  # trains groups to their end or rung


def write(workdir: epath.Path, plan: Plan, groups: Sequence[Group]) -> None:
  """Writes a plan with the groups of this round. The caller holds `worker.exclusive`."""
  plans.write(workdir, msgspec.structs.replace(plan, round=tuple(groups)))


def end(workdir: epath.Path, runs: Mapping[str, Run], stop: Stop) -> None:
  """Marks the end of the rounds for workers, unless another command continues a larger design in this folder."""

  def clear() -> None:
    plan = plans.read(workdir)
    if plan is not None and all(runs.keys() >= {*group.run_ids} and group.ended(runs) for group in plan.round):
      write(workdir, plan, ())

  with exclusive(workdir, "plan", stop):
    hosts.first(clear)


def next_plan(workdir: epath.Path, before: Sequence[Group] | None, stop: Stop) -> Plan | None:
  """Waits for a plan whose round differs from `before`, and returns it.

  Returns the unchanged plan after `NEXT_ROUND_SECONDS`, and None if a stop was requested.
  """
  began = time.monotonic()
  while True:
    plan = plans.read(workdir)
    require(plan is not None, f"--worker: {workdir} has no plan yet; start the study without --worker")
    assert plan is not None
    if before is None or plan.round != before or time.monotonic() - began > NEXT_ROUND_SECONDS:
      return plan
    if stop.requested():
      return None
    time.sleep(POLL_SECONDS)


def wait_for(path: epath.Path, stop: Stop) -> bool:
  """Waits for a file that the study's command writes; returns whether it appeared within `NEXT_ROUND_SECONDS`."""
  began = time.monotonic()
  while not path.exists():
    if stop.requested():
      raise Interrupted("stopped between runs")
    if time.monotonic() - began > NEXT_ROUND_SECONDS:
      return False
    time.sleep(POLL_SECONDS)
  return True


class PausingRounds:
  """Trains the runs of a design that compares them at pauses; each round takes runs to one of these steps."""

  def __init__(
    self, plan: Plan, runs: Sequence[Run], workdir: epath.Path, train_groups: Train, workforce: Workforce, stop: Stop
  ):
    self._plan, self._workdir, self._train = plan, workdir, train_groups
    self._workforce, self._stop = workforce, stop
    self._runs = {run.run_id: run for run in runs}
    self._seconds = {run.run_id: run.expected_seconds for run in plan.runs}
    self._reached = dict.fromkeys(self._runs, 0)  # steps reached by each run

  def run(self, design: halving.Halving | EarlyStopping, measure: str) -> None:
    """Trains all runs from pause to pause, and the surviving runs to the end."""
    runs = list(self._runs.values())
    if isinstance(design, EarlyStopping):
      early_stopping.run(design, runs, measure, self._train_to)
    else:
      if warning := halving.undecayed(design, runs):
        log.warning("%s", warning)
      rungs.run(design, runs, measure, self._train_to)
    end(self._workdir, self._runs, self._stop)

  def _train_to(self, alive: dict[str, Run], until: int) -> None:
    """Trains these runs to the step of a rung, or to the end if `until` is 0."""
    with exclusive(self._workdir, "plan", self._stop):
      on_disk = hosts.first(lambda: plans.read(self._workdir)) or self._plan
      groups = self._groups(on_disk.round, alive, until)
      if groups:
        hosts.first(lambda: write(self._workdir, on_disk, groups))
    self._train(groups, alive)
    self._reached.update(dict.fromkeys(alive, until))

  def _groups(self, under_way: Sequence[Group], alive: dict[str, Run], until: int) -> list[Group]:
    """Returns the groups of a round. Groups `under_way` do not change, because workers may be training them."""
    kept = [group for group in under_way if group.until == until and alive.keys() >= {*group.run_ids}]
    grouped = {run_id for group in kept for run_id in group.run_ids}

    def not_ended() -> list[str]:
      waiting = Group(tuple(run_id for run_id in alive if run_id not in grouped), 0.0, until)
      return waiting.not_ended(alive)

    left = [alive[run_id] for run_id in hosts.first(not_ended)]
    added = [tuple(ids) for ids in packs.group(left, self._workforce.workers, self._workforce.machines)]
    every = [*(group.run_ids for group in kept), *added]
    return [Group(ids, sum(self._expected_seconds(run_id, until) for run_id in ids), until) for ids in every]

  def _expected_seconds(self, run_id: str, until: int) -> float:
    steps = self._runs[run_id].steps
    return self._seconds[run_id] * ((until or steps) - self._reached[run_id]) / steps
