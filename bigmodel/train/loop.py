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
  """How a call of `train_runs` differs from training to the end of every run."""

  expected_seconds: float = 0.0  # of the whole call, for the display
  profile: int = 0  # steps of which a trace is written
  branches: Sequence[Run] = ()  # runs that begin at a step of one of the runs; each gets a checkpoint there
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
  """The training of members in one program, from where they are to their ends or to a rung."""

  def __init__(self, members: list[Member], display: Display, stop: Stop, watchdog: Watchdog, options: Options):
    """Restores the newest state that all members have, or makes the initial one."""
    waiting = under_way(members)
    longest = max(waiting, key=lambda member: member.run.steps)
    self.longest, self.config = longest.run, longest.run.config
    display.begin(title(members), self.longest.steps, options.expected_seconds)
    self.members, self.display, self.stop, self.watchdog, self.options = members, display, stop, watchdog, options
    end = min(self.longest.steps, options.until or self.longest.steps)
    self.done = newest_common([member.checkpoints for member in waiting], end) or 0
    # A checkpoint of the step at which one stage ends is of that stage.
    self.ahead = [stage for stage in longest.stages if stage.stop >= self.done]
    self.schedule = Schedule.of(members, self.ahead, options.branches, options.until)
    self.program, self.hyperparameters = _enter_stage(members, self.ahead[0])
    self.state = restore(self.program, members, self.done)
    peak, clock = self._peak_flops(), Clock(len(waiting))  # measured, where it has to be, before the first step
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
        # Before anything that writes the metrics of this step, which an evaluation completes.
        if self._is_time(schedule.evaluates(self.done)):
          self._evaluate()
        if self._is_time(self.done in schedule.branches):
          self._leave_branches()
        if self._is_time(self.done in schedule.horizons and bool(self._at_their_ends())):
          self._end_some()
        if not self.pending.all_diverged:
          self._save_or_stop(agreement)
    self.pending.drain()

  def _is_time(self, due: bool) -> bool:
    """Whether an event is due. The metrics of all steps before it are then read; if all have diverged, it is not."""
    return due and not self.pending.drain()

  def _begin_stage(self) -> None:
    """Enters the next stage, or the same stage with another batch size."""
    ended, of_ended = self.ahead.pop(0), self.hyperparameters
    self.program, self.hyperparameters = _enter_stage(self.members, self.ahead[0])
    self.pack.program = self.program
    if self.done == self.ahead[0].begin:
      self.state = self.program.next_stage(self.state, of_ended, ended.config, self.ahead[0].config)
    # With larger batches the mesh may be larger, too.
    self.watch.pace, self.watch.peak = math.inf, self._peak_flops()

  def _dispatch(self) -> None:
    """Gives the device the next steps, up to the next event, and meanwhile reads the metrics of those before."""
    first, look_every = self.done, self.config.train.layers_every
    self.profiler.before(first)
    most = 1 if look_every or self.profiler.steps else min(self.program.stride, self.watch.stride())
    count = min(self.schedule.next(first) - first, most)
    self.done = first + count
    begin = self.ahead[0].first
    rows = self.program.put_rows(*([m.rows.part(k - begin) for m in self.members] for k in range(first, self.done)))
    looks = look_every and self.done % look_every == 0
    layers = self.program.layer_statistics(self.state, rows, self.hyperparameters) if looks else None
    self.state, metrics = self.program.step(self.state, rows, self.hyperparameters)
    self.pending.put(Dispatched(first, count, functools.partial(self.program.fetch_metrics, metrics), layers))
    if not self.pending.all_diverged:
      self.profiler.after(first, self.state)
      self.watchdog.beat()

  def _evaluate(self) -> None:
    """Evaluates the members on held-out data, which changes only what is logged and shown."""
    began, found = time.monotonic(), {}
    state = self.program.fetch(self.state)
    going_on = [member for member in self.pack.under_way() if member.run.steps > self.done]
    for part in self.pack.parts(going_on):
      for measured in self.pack.measure(state, part, self.watchdog.beat):
        member = measured.member
        if measured.values is not None:
          found[member] = held_out(member.run.config, part.rows, measured.values)
          if member.best is not None:
            _require_held(self.stop)
            member.best.offer(self.done, measured.state, found[member].loss)
    self.watch.evaluated(self.done, found, time.monotonic() - began)

  def _leave_branches(self) -> None:
    """Gives runs that begin as a member does a checkpoint and the metrics so far."""
    _require_held(self.stop)
    state, by_id = self.program.fetch(self.state), {member.run.run_id: member for member in self.members}
    for run in self.options.branches:
      if run.branch.step == self.done:
        trunk = by_id[run.branch.trunk]
        own = self.pack.state_of(state, trunk)
        if not has_diverged(own):  # else the run trains from its first step, and diverges as well
          handover.hand_over(trunk, run, own, self.stop)
    self.watchdog.beat()

  def _at_their_ends(self) -> list[Member]:
    return [member for member in self.pack.under_way() if member.run.steps == self.done]

  def _end_some(self) -> None:
    """Ends the members whose horizon this is, while the others wait."""
    _require_held(self.stop)
    state, spent = self.program.fetch(self.state), self.watch.clock.spent()
    self.pack.end(self._at_their_ends(), state, self.done, spent)
    del state  # as large as the whole pack
    self.watch.clock.go_on(len(self.pack.under_way()))

  def _save_or_stop(self, agreement: hosts.Agreement) -> None:
    """Saves where a checkpoint is due or a stop was requested; raises `Interrupted` once all is saved for a stop."""
    for member in self.members:
      member.checkpoints.check()
    stopping = agreement.stop_before(self.done)
    if stopping:  # perhaps because another worker has taken over: then not even metrics may be written
      _require_held(self.stop)
    if not self._is_time(stopping or self.schedule.saves(self.done)):
      return
    _require_held(self.stop)
    self.pack.end_diverged(self.state, self.done)
    self.pack.save(self.pack.under_way(), self.state, self.done)
    self.watchdog.beat()
    if stopping:
      self._interrupt()

  def _interrupt(self) -> None:
    """Waits until all is saved, and raises `Interrupted`."""
    spent = self.watch.clock.spent()
    for member in self.members:
      member.checkpoints.wait()
      self.watchdog.beat()
      if member.ended is None:
        write_status(member.run, "interrupted", self.done, member.seconds + spent)
    self.display.end()
    raise Interrupted(f"{title(self.members)} saved at step {self.done} of {self.longest.steps}")

  def finish(self) -> list[Record]:
    """Evaluates the members where they are; returns their records, or nothing where they pause at a rung."""
    self.watchdog.close()
    _require_held(self.stop)
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
  """The program of a stage, and the members' hyperparameters in it; gives the members the rows of the stage."""
  program, hyperparameters = programs.program(stage.config, len(members)), []
  for member in members:
    own = next(one for one in member.stages if one.first == stage.first)
    member.rows = pipeline.train_pipeline(own.config, member.data, own.stop - own.first, own.before)
    hyperparameters.append(optim.hyperparameters(own.config, own.horizon, own.begin))
  return program, program.put_hyperparameters(hyperparameters)


def _require_held(stop: Stop) -> None:
  """Raises `Interrupted` in all processes of a job where another worker has taken over its runs and their files."""
  if hosts.first(stop.lost):
    raise Interrupted(LOST)
