"""Trains the runs of a halving design from rung to rung, and stops all but the best at each rung."""

import math
from collections.abc import Callable, Mapping, Sequence

from bigmodel import record
from bigmodel.config import require
from bigmodel.designs.halving import Halving
from bigmodel.parallel import hosts
from bigmodel.train.results import measured_value, read_rungs, set_record_aside, stopped_record
from bigmodel.train.run import Run


def run(design: Halving, runs: Sequence[Run], measure: str, train_to: Callable[[dict[str, Run], int], None]) -> None:
  """Trains runs from rung to rung by calling `train_to(runs, step)`, where step 0 means the end.

  At a rung, the best runs by `measure` continue, which is the held-out loss or a metric of held-out data. Measurements
  on disk are reused. If the design has grown, the runs are compared again at each rung, and a run that was stopped
  there resumes if it is now among the best.
  """
  require(len({run.steps for run in runs}) == 1, "study design: runs compared at rungs must have equal horizons")
  for halving, members in design.brackets(runs):
    alive = {run.run_id: run for run in members}
    for rung in halving.rungs(members[0].steps):
      resume_stopped(alive, rung)
      train_to(alive, rung)
      losses = hosts.first(lambda rung=rung, alive=alive: {i: value_at(run, rung, measure) for i, run in alive.items()})
      survivors = halving.survivors({run_id: math.inf if loss is None else loss for run_id, loss in losses.items()})
      for run_id in sorted(alive.keys() - survivors):
        hosts.first(lambda run=alive[run_id], rung=rung: _stop(run, rung))
      alive = {run_id: run for run_id, run in alive.items() if run_id in survivors}
    resume_stopped(alive, 0)
    train_to(alive, 0)


def resume_stopped(alive: Mapping[str, Run], until: int) -> None:
  """Sets aside the records of runs that stopped before the step `until` (0: the end), so that they resume."""

  def resume() -> None:
    for run in alive.values():
      ended = record.read(run.folder)
      if ended is not None and ended.status == "stopped" and ended.steps < (until or run.steps):
        set_record_aside(run.folder)

  hosts.first(resume)


def _stop(run: Run, rung: int) -> None:
  if record.read(run.folder) is None:
    stopped_record(run, rung)


def value_at(run: Run, step: int, measure: str) -> float | None:
  """Returns the measure of a run at a rung, smaller being better; None if it diverged or failed before.

  A run that passed this step in another bracket, which has no rung there, is compared by its next rung.
  """
  rungs = {at: rung for at, rung in read_rungs(run).items() if at >= step}
  rung = rungs[min(rungs)] if rungs else None
  if rung is None or rung.loss_eval is None:
    return None
  return measured_value(rung.loss_eval, rung.metrics, measure)
