"""The members of one program: evaluated, saved and ended, as many at once as the program can."""

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

VALUES_BYTES = 1 << 30  # of the values of evaluations that are held at once


@dataclasses.dataclass(frozen=True)
class Part:
  """Members that are evaluated at once, on the same rows."""

  rows: EvalRows
  places: list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """A member with the values of held-out rows."""

  member: Member
  state: State
  params: Params  # those that are evaluated
  values: list[BatchValues] | None  # None where the member has diverged


@dataclasses.dataclass
class Pack:
  """The runs that one program trains together, in their places."""

  members: list[Member]
  program: Program  # of the stage in which they are
  clock: Clock
  beat: Callable[[], None]  # called after each piece of work, so that the watchdog does not end the process

  def under_way(self) -> list[Member]:
    """Those that have no record yet; the others rest, and keep what they have on disk."""
    return [member for member in self.members if member.ended is None]

  def state_of(self, state: State, member: Member) -> State:
    """The state of one member, taken from a state that `program.fetch` returned."""
    return self.program.member(state, self.members.index(member))

  def parts(self, some: Sequence[Member]) -> list[Part]:
    """Some members in parts that are evaluated at once."""
    parts = []
    for data in {id(member.data): member.data for member in some}.values():
      places = [i for i, member in enumerate(self.members) if member in some and member.data is data]
      rows = pipeline.eval_rows(self.members[places[0]].run.config, data)
      most = max(1, min(self.program.at_once, VALUES_BYTES // (16 * max(1, rows.clusters.size))))
      parts += [Part(rows, places[k : k + most]) for k in range(0, len(places), most)]
    return parts

  def measure(self, state: State, part: Part, beat: Callable[[], None]) -> list[Measured]:
    """The values of a part's members, whose `state` was fetched; `beat` is called after each batch."""
    members = [self.members[i] for i in part.places]
    states = [self.program.member(state, i) for i in part.places]
    params = []
    for member, own in zip(members, states, strict=True):
      config = stages.at(member.run.config, int(own.step)).config  # whose optimizer has this state
      params.append(optim.evaluated(config, own.params, own.opt_state))
    sound = [not has_diverged(own) for own in states]
    config = members[0].run.config
    values = iter(measure(self.program, list(itertools.compress(params, sound)), config, part.rows, beat))
    return [
      Measured(member, own, evaluated, next(values) if is_sound else None)
      for member, own, evaluated, is_sound in zip(members, states, params, sound, strict=True)
    ]

  def save(self, some: Sequence[Member], state: State, step: int) -> None:
    """Saves those of `some` that have not diverged: the newest checkpoint of one that has is from before it did."""
    state = self.program.fetch(state)
    for member in some:
      member.metrics.flush()
    states = [(member, self.state_of(state, member)) for member in some]
    states = [(member, own) for member, own in states if not has_diverged(own)]
    # All fingerprints are computed before the threads that write compete with this one; copies are made one by one.
    fingerprints = [hosts.fingerprints(own) for _, own in states]
    for (member, own), of_member in zip(states, fingerprints, strict=True):
      member.checkpoints.save(step, own, of_member)

  def end(self, some: Sequence[Member], state: State, step: int, seconds: float) -> None:
    """Saves and evaluates some members, whose `state` was fetched, and writes their records.

    `seconds` is the time of each so far. On the lanes of a CPU the next part is evaluated while the members of the
    last one are saved and their records are written.
    """
    parts, given_up = self.parts(some), threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1, "evaluation") if self.program.at_once > 1 else None

    def beat() -> None:
      self.beat()
      if given_up.is_set():
        raise concurrent.futures.CancelledError

    def begin(k: int) -> Callable[[], list[Measured]]:
      """Begins to evaluate a part where another thread can; calling the result waits for the values."""
      work = functools.partial(self.measure, state, parts[k], beat)
      return pool.submit(work).result if pool else work

    try:
      wait_for_values, began = begin(0), time.monotonic()
      self.save(some, state, step)
      seconds += (time.monotonic() - began) / len(some)
      for k, part in enumerate(parts):
        began, measured = time.monotonic(), wait_for_values()
        spent = (time.monotonic() - began) / len(part.places)
        if k + 1 < len(parts):
          wait_for_values = begin(k + 1)
        for one in measured:
          _finish(one, part.rows, seconds + spent)
          self.beat()
    finally:
      given_up.set()
      if pool:
        pool.shutdown(wait=False, cancel_futures=True)

  def end_diverged(self, state: State, step: int) -> None:
    """Writes the records of members that have diverged, before the others are saved.

    They have no checkpoint of this step, which resuming the others would look for.
    """
    state = self.program.fetch(state)
    if diverged := [member for member in self.under_way() if has_diverged(self.state_of(state, member))]:
      self.end(diverged, state, step, self.clock.spent())
      self.clock.go_on(len(self.under_way()))

  def pause(self, state: State, step: int, seconds: float) -> None:
    """Evaluates the members at a rung, once each, and writes the results to rungs.json."""

    def has_paused(member: Member) -> bool:
      return hosts.first(lambda: step in results.read_rungs(member.run))

    waiting = [member for member in self.under_way() if not has_paused(member)]
    for part in self.parts(waiting):
      began = time.monotonic()
      measured = self.measure(state, part, self.beat)
      spent = (time.monotonic() - began) / len(part.places)
      for one in measured:
        _write_rung(one, part.rows, step, seconds + spent)


def has_diverged(state: State) -> bool:
  """Whether one member has diverged. The metrics of its last step have been read, so this does not wait."""
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
  results.write_rung(member.run, step, rung)  # last, after all that it refers to


def _rung(measured: Measured, rows: EvalRows) -> results.Rung:
  """The losses of a member at a rung."""
  config, state = measured.member.run.config, measured.state
  if measured.values is not None:
    result = held_out(config, rows, measured.values)
    if math.isfinite(result.loss):
      loss_train = finite(steps.loss_train(state, stages.at(config, int(state.step)).begin))
      return results.Rung(loss_train, result.loss, result.metrics)
  return results.Rung()
