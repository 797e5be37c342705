"""The training loop of one program: one run, or several runs of one shape side by side."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigmodel import hardware, models, optim, train
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data, Datasets
from bigmodel.errors import Interrupted
from bigmodel.files import remove, write_json, write_jsonl
from bigmodel.parallel import hosts
from bigmodel.train import parameters, programs, results, stages, weights
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints, newest_common
from bigmodel.train.display import Display
from bigmodel.train.evaluate import NOTHING, judge, loss_and_metrics, measure
from bigmodel.train.finish import finish
from bigmodel.train.member import Member, open_member, under_way
from bigmodel.train.metrics import read as read_metrics
from bigmodel.train.profiler import Profiler
from bigmodel.train.programs import Program
from bigmodel.train.run import Run, open_folder, write_status
from bigmodel.train.schedule import Dispatched, Pending, Schedule
from bigmodel.train.stop import LOST, Stop
from bigmodel.train.supervise import Watchdog
from bigmodel.train.watch import Clock, Watch, finite, unit_of

VALUES_BYTES = 1 << 30  # of what is evaluated at once


def train_runs(
  runs: list[Run],
  data: Data | Datasets,
  display: Display,
  stop: Stop,
  expected: float = 0.0,
  profile: int = 0,
  branches: Sequence[Run] = (),
  until: int = 0,
) -> list[dict[str, Any]]:
  """Trains runs of one shape in one program, from wherever they are; returns their records.

  Each has a horizon of its own; one that has come to its end is evaluated while the others wait, and rests.

  `branches` are runs that go on from a step of one of them: each gets a checkpoint there. With `until` they pause at
  that step, saved and evaluated on held-out data, and their `rungs.json` says with what result; no record is written.

  Raises `Interrupted` once all is saved after a signal, `CheckpointError` when a
  checkpoint cannot be written. The bits of each member do not depend on the others.
  """
  members = [open_member(run, data(run.config) if isinstance(data, Datasets) else data, stop) for run in runs]
  watchdog = Watchdog(runs[0].config.train.step_timeout)
  with contextlib.ExitStack() as at_the_end:
    for member in members:
      at_the_end.callback(member.checkpoints.close)
      if member.best is not None:
        at_the_end.callback(member.best.close)
    at_the_end.callback(watchdog.close)
    if not (waiting := under_way(members)):
      return [member.ended for member in members if member.ended]
    longest = max(waiting, key=lambda member: member.run.steps)
    display.begin(title(members), longest.run.steps, expected)
    profiler = Profiler(longest.run.folder / "logs" / "profile", profile, longest.run.steps)
    loop = _Loop(members, display, stop, watchdog, profiler, branches, until)
    loop.make_steps()
    records = loop.finish()
    display.end("\n".join(results.summary(record) for record in records))
    return records


@dataclasses.dataclass
class _Loop:
  """The training of a pack of members in one program, from where they are to their ends or to the step `until`."""

  members: list[Member]
  display: Display
  stop: Stop
  watchdog: Watchdog
  profiler: Profiler
  branches: Sequence[Run]
  until: int

  def __post_init__(self) -> None:
    """Restores the newest state that all members have, or makes the initial one."""
    waiting = under_way(self.members)
    longest = max(waiting, key=lambda member: member.run.steps)
    self.longest, self.config = longest.run, longest.run.config
    end = min(self.longest.steps, self.until or self.longest.steps)
    self.done = newest_common([member.checkpoints for member in waiting], end) or 0
    # What was saved where one stage ends is of that stage.
    self.ahead = [stage for stage in longest.stages if stage.stop >= self.done]
    self.schedule = Schedule.of(self.members, self.ahead, self.branches, self.until)
    self.program, self.hyperparameters = _stage(self.members, self.ahead[0])
    self.state = _restore(self.program, self.members, self.done)
    # Where the peak has to be measured, it is before that would disturb a step.
    peak, clock = _peak(self.program, self.config), Clock(len(waiting))
    self.watch = Watch(self.members, self.done, self.longest.steps, self.display, clock, peak)
    self.pending = Pending(lambda last: self.watch.read(last.first, last.count, last.metrics, last.layers))
    self.profiler.start = self.done

  def make_steps(self) -> None:
    """Makes steps until the end, and between them what is due. Raises `Interrupted` once all is saved for a stop."""
    events = (
      self._begin_stage,
      self._dispatch,
      self._evaluate,
      self._leave_branches,
      self._end_some,
      self._save_or_stop,
    )
    with hosts.Agreement(self.stop.requested) as self.agreement:
      while self.done < self.schedule.end and under_way(self.members) and not self.pending.all_diverged:
        for event in events:
          event()
          if self.pending.all_diverged:
            break
    self.pending.drain()

  def _begin_stage(self) -> None:
    """Goes on with the next stage, or with another batch size of the same one, where one has come to its end."""
    if self.done != self.ahead[0].stop or self.pending.drain():
      return
    ended, of_ended = self.ahead.pop(0), self.hyperparameters
    self.program, self.hyperparameters = _stage(self.members, self.ahead[0])
    if self.done == self.ahead[0].begin:
      self.state = self.program.next_stage(self.state, of_ended, ended.config, self.ahead[0].config)
    # Batches may be larger, and so the mesh.
    self.watch.pace, self.watch.peak = math.inf, _peak(self.program, self.config)

  def _dispatch(self) -> None:
    """Gives the device the next steps, up to the next event, and reads the metrics of those before meanwhile."""
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

  def _leave_branches(self) -> None:
    """Gives runs that begin as a member does a checkpoint and the metrics so far; each goes on by resuming."""
    if self.done not in self.schedule.branches or self.pending.drain():
      return
    _require_held(self.stop)
    state = self.program.fetch(self.state)
    for run in self.branches:
      if run.branch is not None and run.branch.step == self.done:
        index = next(i for i, member in enumerate(self.members) if member.run.run_id == run.branch.trunk)
        own = self.program.member(state, index)
        if not _has_diverged(own):  # else it will find out by itself, from its first step on
          _leave(self.members[index], run, own, self.stop)
    self.watchdog.beat()

  def _end_some(self) -> None:
    """Ends the members whose horizon this is, while their companions wait."""
    ending = [member for member in under_way(self.members) if member.run.steps == self.done]
    if self.done not in self.schedule.horizons or not ending or self.pending.drain():
      return
    _require_held(self.stop)
    host, spent = self.program.fetch(self.state), self.watch.clock.spent()
    self._end(ending, host, self.done, spent)
    del host  # as large as the whole pack
    self.watch.clock.go_on(len(under_way(self.members)))

  def _evaluate(self) -> None:
    """Evaluates the members on held-out data where that is due; it changes nothing but what is logged and shown.

    Before anything that writes the rows of this step, so that they are whole.
    """
    if not self.schedule.evaluates(self.done) or self.pending.drain():
      return
    began, found = time.monotonic(), {}
    state = self.program.fetch(self.state)
    going_on = [member for member in under_way(self.members) if member.run.steps > self.done]
    for rows, places in _parts(self.program, self.members, going_on):
      evaluated = _measured(self.program, self.members, state, rows, places, self.watchdog.beat)
      for i, (own, _, values) in zip(places, evaluated, strict=True):
        if values is not None:
          member = self.members[i]
          found[member] = loss_and_metrics(member.run.config, rows, values)
          if member.best is not None:
            _require_held(self.stop)
            member.best.offer(self.done, own, found[member]["loss_eval"])
    self.watch.evaluated(self.done, found, time.monotonic() - began)

  def _save_or_stop(self) -> None:
    """Saves where a checkpoint is due or a stop was requested; `Interrupted` then tells that all is saved."""
    for member in self.members:
      member.checkpoints.check()
    stopping = self.agreement.stop_before(self.done)
    if stopping:  # perhaps because another worker has taken over: then not even metrics may be written
      _require_held(self.stop)
    if not (stopping or self.schedule.saves(self.done)) or self.pending.drain():
      return
    _require_held(self.stop)
    self._end_diverged(self.state, self.done)
    self._save(under_way(self.members), self.state, self.done)
    self.watchdog.beat()
    if not stopping:
      return
    spent = self.watch.clock.spent()
    for member in self.members:
      member.checkpoints.wait()
      self.watchdog.beat()
      if member.ended is None:
        write_status(member.run, "interrupted", self.done, member.seconds + spent)
    self.display.end()
    raise Interrupted(f"{title(self.members)} saved at step {self.done} of {self.longest.steps}")

  def finish(self) -> list[dict[str, Any]]:
    """Evaluates the members where they are; returns their records, or nothing where they pause at a rung."""
    self.watchdog.close()
    _require_held(self.stop)
    state, seconds = self.program.fetch(self.state), self.watch.clock.spent()
    del self.state  # as large as the whole pack, on the devices
    places = [i for i, member in enumerate(self.members) if member.ended is None]
    last = max((int(self.program.member(state, i).step) for i in places), default=self.done)
    if self.until and self.until < self.longest.steps:
      self._end_diverged(state, last)
      self._save(under_way(self.members), state, last)
      self._pause(state, self.watch.clock.spent())
      return []
    if under_way(self.members):
      self._end(under_way(self.members), state, last, seconds)
    hosts.barrier(f"{self.longest.run_id}/ended")
    return [member.ended for member in self.members if member.ended]

  def _pause(self, state: Any, seconds: float) -> None:
    """Evaluates members that have come to a rung, once each, and writes down what they came to."""
    step = self.until
    has_been_here = lambda run: str(step) in results.read_rungs(run)
    waiting = [m for m in under_way(self.members) if not hosts.first(functools.partial(has_been_here, m.run))]
    for rows, places in _parts(self.program, self.members, waiting):
      began = time.monotonic()
      evaluated = _measured(self.program, self.members, state, rows, places, self.watchdog.beat)
      spent = (time.monotonic() - began) / len(places)
      for i, (own, _, values) in zip(places, evaluated, strict=True):
        member = self.members[i]
        rung = _rung(member, own, rows, values)
        member.checkpoints.wait()
        write_status(member.run, "paused", step, member.seconds + seconds + spent)
        rungs = {**results.read_rungs(member.run), str(step): rung}
        path = member.run.folder / "rungs.json"
        hosts.first(lambda path=path, rungs=rungs: write_json(path, rungs))  # last, so that what it tells of is saved

  def _end_diverged(self, state: Any, step: int) -> None:
    """Writes the records of members that have diverged, before the others are saved.

    They have no checkpoint of this step, which resuming the others would look for.
    """
    state = self.program.fetch(state)
    places = [i for i, member in enumerate(self.members) if member.ended is None]
    if diverged := [self.members[i] for i in places if _has_diverged(self.program.member(state, i))]:
      self._end(diverged, state, step, self.watch.clock.spent())
      self.watch.clock.go_on(len(under_way(self.members)))

  def _save(self, some: list[Member], state: Any, step: int) -> None:
    """Saves those of `some` that have not diverged: the newest checkpoint of one that has is from before it did."""
    state = self.program.fetch(state)
    states = {index: self.program.member(state, index) for index, member in enumerate(self.members) if member in some}
    for index in states:
      self.members[index].metrics.flush()
    states = {index: own for index, own in states.items() if not _has_diverged(own)}
    # All of these before the threads that write compete with this one; copies one by one.
    marks = {index: hosts.fingerprints(own) for index, own in states.items()}
    for index, own in states.items():
      self.members[index].checkpoints.save(step, own, marks[index])

  def _end(self, some: list[Member], state: Any, step: int, seconds: float) -> None:
    """Saves and evaluates some members, as many at once as the program can, and writes their records."""
    parts = _parts(self.program, self.members, some)
    given_up = threading.Event()

    def beat() -> None:
      self.watchdog.beat()
      if given_up.is_set():
        raise concurrent.futures.CancelledError

    def measured(rows: pipeline.EvalRows, places: list[int]) -> list[tuple[steps.State, Any, Any]]:
      return _measured(self.program, self.members, state, rows, places, beat)

    # Of a pack on a CPU the first compute while all are saved, and the next while records are written.
    pool = concurrent.futures.ThreadPoolExecutor(1, "evaluation") if self.program.at_once > 1 else None

    def begin(k: int) -> Callable[[], list[tuple[steps.State, Any, Any]]]:
      """Begins to evaluate a part where another thread can; what it returns waits for the values."""
      return pool.submit(measured, *parts[k]).result if pool else functools.partial(measured, *parts[k])

    try:
      wait_for_values, began = begin(0), time.monotonic()
      self._save(some, state, step)
      seconds += (time.monotonic() - began) / len(some)
      for k, (rows, places) in enumerate(parts):
        began, found = time.monotonic(), wait_for_values()
        spent = (time.monotonic() - began) / len(places)
        if k + 1 < len(parts):
          wait_for_values = begin(k + 1)
        for i, (own, params, values) in zip(places, found, strict=True):
          began, member = time.monotonic(), self.members[i]
          result = judge(member.run.config, rows, values) if values is not None else NOTHING
          if member.best is not None:
            member.best.offer(int(own.step), own, result.loss)
          member.ended = finish(member, own, params, result, seconds + spent + time.monotonic() - began)
          self.watchdog.beat()
    finally:
      given_up.set()
      if pool:
        pool.shutdown(wait=False, cancel_futures=True)


def _stage(members: list[Member], stage: stages.Stage) -> tuple[Program, Any]:
  """The program of a stage of all members, and their hyperparameters in it; gives them the rows that it trains on."""
  program = programs.program(stage.config, len(members))
  own = [next(s for s in m.stages if s.first == stage.first) for m in members]
  for member, one in zip(members, own, strict=True):
    member.rows = pipeline.train_pipeline(one.config, member.data, one.stop - one.first, one.before)
  return program, program.put_hyperparameters(
    [optim.hyperparameters(one.config, one.horizon, one.begin) for one in own]
  )


def _restore(program: Program, members: list[Member], start: int) -> Any:
  """The states of step `start`, which are the initial ones at 0; a member that has ended is past its horizon."""
  states = []
  for member in members:
    if member.ended is not None:
      states.append(dataclasses.replace(program.init(member.run.config.seed), step=np.int32(member.run.steps)))
      continue
    if start:
      parameters.require_padding(member.run.config, member.checkpoints, start, program.shapes.params)
      state = member.checkpoints.restore(start, program.shapes)
    else:
      state = weights.start(member.run.config, program.init(member.run.config.seed), program.optimizer_state)
      hosts.first(lambda member=member: remove(member.run.folder / "trunk.json"))
    states.append(state)
    hosts.barrier(f"{member.run.run_id}/restored")
    member.checkpoints.drop_after(start)  # damaged, or past a companion's
    member.metrics.cut(start)
    if member.best is not None:
      member.best.resume(start)
  return program.place(states)


def _require_held(stop: Stop) -> None:
  """Ends the work of all processes of a job where another worker has taken over: this one owns these files no more."""
  if hosts.first(stop.lost):
    raise Interrupted(LOST)


def _leave(trunk: Member, run: Run, state: steps.State, stop: Stop) -> None:
  """Gives a run that begins as `trunk` does a checkpoint and the metrics so far."""
  assert run.branch is not None
  step, branch = run.branch.step, dataclasses.asdict(run.branch)
  hosts.first(lambda: open_folder(run))
  trunk.metrics.flush()
  rows = [row for row in read_metrics(trunk.run.folder) if row["step"] <= step]
  hosts.first(lambda: write_jsonl(run.folder / "metrics.jsonl", rows))
  hosts.first(lambda: write_json(run.folder / "trunk.json", branch))
  checkpoints = Checkpoints(run.folder / "checkpoints", run.config.train.keep, stop.lost)
  checkpoints.save(step, state)
  checkpoints.close()


def _peak(program: Program, config: Any) -> float:
  return hardware.peak_flops(list(program.mesh.devices.flat), config.train.compute_dtype)


def _parts(program: Program, members: list[Member], some: list[Member]) -> list[tuple[pipeline.EvalRows, list[int]]]:
  """Places of some members in parts that are evaluated at once, on the same rows."""
  parts = []
  for data in {id(member.data): member.data for member in some}.values():
    places = [i for i, member in enumerate(members) if member in some and member.data is data]
    rows = pipeline.eval_rows(members[places[0]].run.config, data)
    most = max(1, min(program.at_once, VALUES_BYTES // (16 * max(1, rows.clusters.size))))
    parts += [(rows, places[k : k + most]) for k in range(0, len(places), most)]
  return parts


def _measured(
  program: Program,
  members: list[Member],
  state: Any,
  rows: pipeline.EvalRows,
  places: list[int],
  beat: Callable[[], None],
) -> list[tuple[steps.State, Any, Any]]:
  """Of each of the members at `places`: its state, the parameters that are evaluated, and their values if it is sound.

  `state` is on the host.
  """
  configs, own = [members[i].run.config for i in places], [program.member(state, i) for i in places]
  in_force = [stages.at(c, int(one.step)).config for c, one in zip(configs, own, strict=True)]
  params = [optim.evaluated(c, one.params, one.opt_state) for c, one in zip(in_force, own, strict=True)]
  sound = [not _has_diverged(one) for one in own]
  values = iter(measure(program, list(itertools.compress(params, sound)), configs[0], rows, beat))
  return [(one, p, next(values) if s else None) for one, p, s in zip(own, params, sound, strict=True)]


def _rung(member: Member, own: steps.State, rows: pipeline.EvalRows, values: Any) -> results.Rung:
  """What a member has come to at a rung; `values` are those of the held-out rows, or None if it has diverged."""
  if values is not None:
    found = loss_and_metrics(member.run.config, rows, values)
    if math.isfinite(found["loss_eval"]):
      loss_train = finite(steps.loss_train(own, stages.at(member.run.config, int(own.step)).begin))
      return {"loss_train": loss_train, "loss_eval": found["loss_eval"], "metrics": found["metrics"]}
  return {"loss_train": None, "loss_eval": None, "metrics": {}}


def _has_diverged(state: steps.State) -> bool:
  """Of one member. The metrics of its last step have been read, so that there is nothing to wait for."""
  return int(state.diverged_at) >= 0


def title(members: list[Member]) -> str:
  """What the display calls a program: 'decoder of 34k, 4.1M tokens', with the number of members."""
  config = members[0].run.config
  tokens = train.tokens_at(config, members[0].run.steps)
  many = f"{len(members)} x " if len(members) > 1 else ""
  size = models.counts_of(config).params_total
  short = lambda n: f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k"
  return f"{many}{config.model.family} of {short(size)}, {short(tokens)} {unit_of(config)}"
