"""The training loop of one program: one run, or several runs of one shape side by side."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Sequence

from bigmodel import hardware, optim
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data, Datasets
from bigmodel.errors import Interrupted
from bigmodel.parallel import hosts
from bigmodel.record import Record
from bigmodel.train import handover, programs, results, stages
from bigmodel.train.checkpoint import newest_common
from bigmodel.train.display import Display
from bigmodel.train.evaluate import held_out
from bigmodel.train.member import Member, open_member, restore, under_way
from bigmodel.train.pack import Pack, has_diverged
from bigmodel.train.profiler import Profiler
from bigmodel.train.programs import Program
from bigmodel.train.run import Run, write_status
from bigmodel.train.schedule import Dispatched, Pending, Schedule
from bigmodel.train.stop import LOST, Stop
from bigmodel.train.supervise import Watchdog
from bigmodel.train.watch import Clock, Watch, title


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of one call of `train_runs`; by default it trains every run to its end."""

  expected_seconds: float = 0.0  # of the whole call, for the display
  profile: int = 0  # number of steps to trace
  branches: Sequence[Run] = ()  # runs that branch off from one of the runs and get its checkpoint
  until: int = 0  # the step at which the runs pause, saved and evaluated; 0: at their ends


def train_runs(
  runs: Sequence[Run], data: Data | Datasets, display: Display, stop: Stop, options: Options = Options()
) -> list[Record]:
  """Trains runs of one shape in one program, from their newest common checkpoint; returns their records.

  Each has its own horizon; a run at its end is evaluated while the others wait. With `options.until` the runs pause at
  that step, `rungs.json` has the results of their evaluation, and no record is written.

  Raises `Interrupted` after a signal, once all is saved, and `CheckpointError` when a checkpoint cannot be written. The
  bits of each run do not depend on the others.
  """
  members = [open_member(run, data(run.config) if isinstance(data, Datasets) else data, stop) for run in runs]
  watchdog = Watchdog(runs[0].config.train.step_timeout)
  with contextlib.ExitStack() as at_the_end:
    for member in members:
      at_the_end.callback(member.checkpoints.close)
      if member.best is not None:
        at_the_end.callback(member.best.close)
    at_the_end.callback(watchdog.close)
    if not under_way(members):
      return [member.ended for member in members if member.ended]
    loop = _Loop(members, display, stop, watchdog, options)
    loop.make_steps()
    records = loop.finish()
    display.end("\n".join(results.summary(record) for record in records))
    return records


class _Loop:
  """Trains members in one program, from their newest common step to their horizons or to a rung."""

  def __init__(self, members: list[Member], display: Display, stop: Stop, watchdog: Watchdog, options: Options):
    """Restores the newest state that all members have, or makes the initial one."""
    waiting = under_way(members)
    longest = max(waiting, key=lambda member: member.run.steps)
    self.longest, self.config = longest.run, longest.run.config
    display.begin(title(members), self.longest.steps, options.expected_seconds)
    self.members, self.display, self.stop, self.watchdog, self.options = members, display, stop, watchdog, options
    end = min(self.longest.steps, options.until or self.longest.steps)
    self.done = newest_common([member.checkpoints for member in waiting], end) or 0
    # A checkpoint at the last step of a stage belongs to that stage, not to the next one.
    self.ahead = [stage for stage in longest.stages if stage.stop >= self.done]
    self.schedule = Schedule.of(members, self.ahead, options.branches, options.until)
    self.program, self.hyperparameters = _enter_stage(members, self.ahead[0])
    self.state = restore(self.program, members, self.done)
    peak, clock = self._peak_flops(), Clock(len(waiting))  # a peak that must be measured is measured before the steps
    self.watch = Watch(members, self.done, self.longest.steps, display, clock, peak)
    self.pack = Pack(members, self.program, clock, watchdog.beat)
    self.pending = Pending(self.watch.read)
    self.profiler = Profiler(self.longest.folder / "logs" / "profile", options.profile, self.longest.steps)
    self.profiler.start = self.done

  def make_steps(self) -> None:
    """Makes steps until the end, and handles the events between them. Raises `Interrupted` once all is saved."""
    schedule = self.schedule
    with hosts.Agreement(self.stop.requested) as agreement:
      while self.done < schedule.end and self.pack.under_way() and not self.pending.all_diverged:
        if self._is_time(self.done == self.ahead[0].stop):
          self._begin_stage()
        if not self.pending.all_diverged:
          self._dispatch()
        # Evaluation comes first, because it adds to the metrics of this step, which the other events write.
        if self._is_time(schedule.evaluates(self.done)):
          self._evaluate()
        if self._is_time(self.done in schedule.branches):
          self._start_branches()
        if self._is_time(self.done in schedule.horizons and bool(self._members_at_horizon())):
          self._end_members()
        if not self.pending.all_diverged:
          self._save_or_stop(agreement)
    self.pending.drain()

  def _is_time(self, due: bool) -> bool:
    """Whether an event is due. If so, reads all earlier metrics first; none is due if all have diverged."""
    return due and not self.pending.drain()

  def _begin_stage(self) -> None:
    """Enters the next stage, or the same stage with another batch size."""
    ended, old_hyperparameters = self.ahead.pop(0), self.hyperparameters
    self.program, self.hyperparameters = _enter_stage(self.members, self.ahead[0])
    self.pack.program = self.program
    if self.done == self.ahead[0].begin:
      self.state = self.program.next_stage(self.state, old_hyperparameters, ended.config, self.ahead[0].config)
    # Larger batches may allow a larger mesh, which has another peak.
    self.watch.pace, self.watch.peak = math.inf, self._peak_flops()

  def _dispatch(self) -> None:
    """Dispatches the steps up to the next event, and reads the metrics of the previous steps meanwhile."""
    first, layers_every = self.done, self.config.train.layers_every
    self.profiler.before(first)
    limit = 1 if layers_every or self.profiler.steps else min(self.program.stride, self.watch.stride())
    count = min(self.schedule.next(first) - first, limit)
    self.done = first + count
    begin = self.ahead[0].first
    rows = self.program.put_rows(*([m.rows.part(k - begin) for m in self.members] for k in range(first, self.done)))
    wants_layers = layers_every and self.done % layers_every == 0
    layers = self.program.layer_statistics(self.state, rows, self.hyperparameters) if wants_layers else None
    self.state, metrics = self.program.step(self.state, rows, self.hyperparameters)
    self.pending.put(Dispatched(first, count, functools.partial(self.program.fetch_metrics, metrics), layers))
    if not self.pending.all_diverged:
      self.profiler.after(first, self.state)
      self.watchdog.beat()

  def _evaluate(self) -> None:
    """Evaluates the members on held-out data. This only affects what is logged and shown."""
    began, evaluations = time.monotonic(), {}
    state = self.program.fetch(self.state)
    unfinished = [member for member in self.pack.under_way() if member.run.steps > self.done]
    for part in self.pack.parts(unfinished):
      for measured in self.pack.measure(state, part, self.watchdog.beat):
        member = measured.member
        if measured.values is not None:
          evaluations[member] = held_out(member.run.config, part.rows, measured.values)
          if member.best is not None:
            _require_ownership(self.stop)
            member.best.offer(self.done, measured.state, evaluations[member].loss)
    self.watch.evaluated(self.done, evaluations, time.monotonic() - began)

  def _start_branches(self) -> None:
    """Gives every run that branches off from a member at this step the member's checkpoint and metrics."""
    _require_ownership(self.stop)
    state, by_id = self.program.fetch(self.state), {member.run.run_id: member for member in self.members}
    for run in self.options.branches:
      if run.branch.step == self.done:
        trunk = by_id[run.branch.trunk]
        trunk_state = self.pack.state_of(state, trunk)
        if not has_diverged(trunk_state):  # otherwise the branch trains from its first step, and diverges as well
          handover.hand_over(trunk, run, trunk_state, self.stop)
    self.watchdog.beat()

  def _members_at_horizon(self) -> list[Member]:
    return [member for member in self.pack.under_way() if member.run.steps == self.done]

  def _end_members(self) -> None:
    """Evaluates and ends the members that have reached their horizon, while the others wait."""
    _require_ownership(self.stop)
    state, spent = self.program.fetch(self.state), self.watch.clock.spent()
    self.pack.end(self._members_at_horizon(), state, self.done, spent)
    del state  # as large as the whole pack
    self.watch.clock.restart(len(self.pack.under_way()))

  def _save_or_stop(self, agreement: hosts.Agreement) -> None:
    """Saves if a checkpoint is due or a stop was requested. For a stop, raises `Interrupted` once all is saved."""
    for member in self.members:
      member.checkpoints.check()
    stopping = agreement.stop_before(self.done)
    if stopping:  # if another worker has taken over, not even metrics may be written
      _require_ownership(self.stop)
    if not self._is_time(stopping or self.schedule.saves(self.done)):
      return
    _require_ownership(self.stop)
    self.pack.end_diverged(self.state, self.done)
    self.pack.save(self.pack.under_way(), self.state, self.done)
    self.watchdog.beat()
    if stopping:
      self._interrupt()

  def _interrupt(self) -> None:
    """Waits until everything is saved, then raises `Interrupted`."""
    spent = self.watch.clock.spent()
    for member in self.members:
      member.checkpoints.wait()
      self.watchdog.beat()
      if member.ended is None:
        write_status(member.run, "interrupted", self.done, member.seconds + spent)
    self.display.end()
    raise Interrupted(f"{title(self.members)} saved at step {self.done} of {self.longest.steps}")

  def finish(self) -> list[Record]:
    """Evaluates the members at their last step; returns their records, or [] if they pause at a rung."""
    self.watchdog.close()
    _require_ownership(self.stop)
    state, seconds = self.program.fetch(self.state), self.watch.clock.spent()
    del self.state  # as large as the whole pack, on the devices
    waiting = self.pack.under_way()
    last = max((int(self.pack.state_of(state, member).step) for member in waiting), default=self.done)
    if self.options.until and self.options.until < self.longest.steps:
      self.pack.end_diverged(state, last)
      self.pack.save(self.pack.under_way(), state, last)
      self.pack.pause(state, self.options.until, self.watch.clock.spent())
      return []
    if waiting:
      self.pack.end(waiting, state, last, seconds)
    hosts.barrier(f"{self.longest.run_id}/ended")
    return [member.ended for member in self.members if member.ended]

  def _peak_flops(self) -> float:
    """FLOP/s that the devices of the program's mesh can reach together."""
    return hardware.peak_flops(list(self.program.mesh.devices.flat), self.config.train.compute_dtype)


def _enter_stage(members: list[Member], stage: stages.Stage) -> tuple[Program, optim.Hyperparameters]:
  """Returns the program of a stage and the members' hyperparameters; sets the members' rows to those of the stage."""
  program, hyperparameters = programs.program(stage.config, len(members)), []
  for member in members:
    member_stage = next(candidate for candidate in member.stages if candidate.first == stage.first)
    steps = member_stage.stop - member_stage.first
    member.rows = pipeline.train_pipeline(member_stage.config, member.data, steps, member_stage.before)
    hyperparameters.append(optim.hyperparameters(member_stage.config, member_stage.horizon, member_stage.begin))
  return program, program.put_hyperparameters(hyperparameters)


def _require_ownership(stop: Stop) -> None:
  """Raises `Interrupted`, in all processes of a job, if another worker has taken over its runs."""
  if hosts.first(stop.lost):
    raise Interrupted(LOST)
