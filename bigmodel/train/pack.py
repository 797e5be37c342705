"""Evaluates, saves and ends the members of one program, as many at once as the program allows."""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

from bigmodel import optim
from bigmodel.data import pipeline
from bigmodel.data.pipeline import EvalRows
from bigmodel.parallel import hosts
from bigmodel.train import results, stages
from bigmodel.train import step as steps
from bigmodel.train.evaluate import NOTHING, held_out, judge, measure
from bigmodel.train.finish import finish
from bigmodel.train.member import Member
from bigmodel.train.programs import Program
from bigmodel.train.programs.protocol import BatchValues
from bigmodel.train.run import write_status
from bigmodel.train.step import State
from bigmodel.train.watch import Clock, finite
from bigmodel.types import Params

VALUES_BYTES = 1 << 30  # of evaluation values in memory at once, at most


@dataclasses.dataclass(frozen=True)
class Part:
  """Members that are evaluated at once, on the same rows."""

  rows: EvalRows
  indices: list[int]  # of the members in the pack


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """A member, its state, and its values on held-out rows."""

  member: Member
  state: State
  params: Params  # the evaluated ones: averages, for some optimizers
  values: list[BatchValues] | None  # None where the member has diverged


@dataclasses.dataclass
class Pack:
  """The runs that one program trains together; their order is that of the program's members."""

  members: list[Member]
  program: Program  # of the current stage
  clock: Clock
  beat: Callable[[], None]  # called after each piece of work, so that the watchdog does not end the process

  def under_way(self) -> list[Member]:
    """The members that have no record yet. The files of the others no longer change."""
    return [member for member in self.members if member.ended is None]

  def state_of(self, state: State, member: Member) -> State:
    """The state of one member, taken from a state that `program.fetch` returned."""
    return self.program.member(state, self.members.index(member))

  def parts(self, members: Sequence[Member]) -> list[Part]:
    """Splits members into parts that are evaluated at once."""
    parts = []
    for data in {id(member.data): member.data for member in members}.values():
      indices = [i for i, member in enumerate(self.members) if member in members and member.data is data]
      rows = pipeline.eval_rows(self.members[indices[0]].run.config, data)
      most = max(1, min(self.program.at_once, VALUES_BYTES // (16 * max(1, rows.clusters.size))))
      parts += [Part(rows, indices[k : k + most]) for k in range(0, len(indices), most)]
    return parts

  def measure(self, state: State, part: Part, beat: Callable[[], None]) -> list[Measured]:
    """The values of a part's members, whose `state` was fetched; `beat` is called after each batch."""
    members = [self.members[i] for i in part.indices]
    states = [self.program.member(state, i) for i in part.indices]
    params = []
    for member, member_state in zip(members, states, strict=True):
      # The optimizer of this stage wrote the state.
      config = stages.at(member.run.config, int(member_state.step)).config
      params.append(optim.evaluated(config, member_state.params, member_state.opt_state))
    sound = [not has_diverged(member_state) for member_state in states]
    config = members[0].run.config
    values = iter(measure(self.program, list(itertools.compress(params, sound)), config, part.rows, beat))
    return [
      Measured(member, member_state, evaluated, next(values) if is_sound else None)
      for member, member_state, evaluated, is_sound in zip(members, states, params, sound, strict=True)
    ]

  def save(self, members: Sequence[Member], state: State, step: int) -> None:
    """Saves those of `members` that have not diverged; others keep their last checkpoint from before they diverged."""
    state = self.program.fetch(state)
    for member in members:
      member.metrics.flush()
    states = [(member, self.state_of(state, member)) for member in members]
    states = [(member, member_state) for member, member_state in states if not has_diverged(member_state)]
    # All fingerprints are computed before the threads that write compete with this one; copies are made one by one.
    fingerprints = [hosts.fingerprints(member_state) for _, member_state in states]
    for (member, member_state), of_member in zip(states, fingerprints, strict=True):
      member.checkpoints.save(step, member_state, of_member)

  def end(self, members: Sequence[Member], state: State, step: int, seconds: float) -> None:
    """Saves and evaluates members, whose `state` was fetched, and writes their records.

    `seconds` is the training time of each so far. On the lanes of a CPU the next part is evaluated while the members
    of the last one are saved and their records are written.
    """
    parts, given_up = self.parts(members), threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1, "evaluation") if self.program.at_once > 1 else None

    def beat() -> None:
      self.beat()
      if given_up.is_set():
        raise concurrent.futures.CancelledError

    def begin(k: int) -> Callable[[], list[Measured]]:
      """Starts the evaluation of a part, in a thread if there is one; calling the result waits for the values."""
      work = functools.partial(self.measure, state, parts[k], beat)
      return pool.submit(work).result if pool else work

    try:
      wait_for_values, began = begin(0), time.monotonic()
      self.save(members, state, step)
      seconds += (time.monotonic() - began) / len(members)
      for k, part in enumerate(parts):
        began, measured = time.monotonic(), wait_for_values()
        spent = (time.monotonic() - began) / len(part.indices)
        if k + 1 < len(parts):
          wait_for_values = begin(k + 1)
        for measured_member in measured:
          _finish(measured_member, part.rows, seconds + spent)
          self.beat()
    finally:
      given_up.set()
      if pool:
        pool.shutdown(wait=False, cancel_futures=True)

  def end_diverged(self, state: State, step: int) -> None:
    """Writes the records of members that have diverged, before the others are saved.

    Resuming looks for a step that all members without a record have, and diverged members are not saved at this step.
    """
    state = self.program.fetch(state)
    if diverged := [member for member in self.under_way() if has_diverged(self.state_of(state, member))]:
      self.end(diverged, state, step, self.clock.spent())
      self.clock.restart(len(self.under_way()))

  def pause(self, state: State, step: int, seconds: float) -> None:
    """Evaluates the members at a rung, once each, and writes their losses and metrics to rungs.json."""

    def has_paused(member: Member) -> bool:
      return hosts.first(lambda: step in results.read_rungs(member.run))

    waiting = [member for member in self.under_way() if not has_paused(member)]
    for part in self.parts(waiting):
      began = time.monotonic()
      measured = self.measure(state, part, self.beat)
      spent = (time.monotonic() - began) / len(part.indices)
      for measured_member in measured:
        _write_rung(measured_member, part.rows, step, seconds + spent)


def has_diverged(state: State) -> bool:
  """Whether the member of this state has diverged. Does not wait: the metrics of its last step have been read."""
  return int(state.diverged_at) >= 0


def _finish(measured: Measured, rows: EvalRows, seconds: float) -> None:
  """Writes the record of a member."""
  began, member = time.monotonic(), measured.member
  result = NOTHING if measured.values is None else judge(member.run.config, rows, measured.values)
  if member.best is not None:
    member.best.offer(int(measured.state.step), measured.state, result.loss)
  seconds += time.monotonic() - began
  member.ended = finish(member, measured.state, measured.params, result, seconds)


def _write_rung(measured: Measured, rows: EvalRows, step: int, seconds: float) -> None:
  member = measured.member
  rung = _rung(measured, rows)
  member.checkpoints.wait()
  write_status(member.run, "paused", step, member.seconds + seconds)
  results.write_rung(member.run, step, rung)  # last, when everything that it refers to is written


def _rung(measured: Measured, rows: EvalRows) -> results.Rung:
  """The losses of a member at a rung."""
  config, state = measured.member.run.config, measured.state
  if measured.values is not None:
    result = held_out(config, rows, measured.values)
    if math.isfinite(result.loss):
      loss_train = finite(steps.loss_train(state, stages.at(config, int(state.step)).begin))
      return results.Rung(loss_train, result.loss, result.metrics)
  return results.Rung()
