"""When events happen between the steps of a program, and the steps whose metrics have not been read yet."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bigmodel.train.member import Member
from bigmodel.train.run import Run
from bigmodel.train.stages import Stage
from bigmodel.train.statistics import LayerStatistics


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The events of a program, each by the number of steps before it. Between events the program only makes steps."""

  end: int  # the last step: a rung, or the longest horizon
  stages: frozenset[int]  # where another stage begins, or another batch size
  branches: frozenset[int]  # where other runs branch off
  horizons: frozenset[int]  # where a member ends and others continue
  checkpoint_every: int
  evaluate_every: int  # 0: only at the end
  longest: int  # the longest horizon, at which the last checkpoint is written with the record

  @classmethod
  def of(cls, members: Sequence[Member], ahead: Iterable[Stage], branches: Sequence[Run], until: int) -> "Schedule":
    """The schedule of members up to the step `until`, where that is not 0; `ahead` are the stages still to come."""
    longest = max((member.run for member in members if member.ended is None), key=lambda run: run.steps)
    return cls(
      end=min(longest.steps, until or longest.steps),
      stages=frozenset(stage.stop for stage in ahead),
      branches=frozenset(run.branch.step for run in branches if run.branch is not None),
      horizons=frozenset(member.run.steps for member in members) - {longest.steps},
      checkpoint_every=longest.config.train.checkpoint_every,
      evaluate_every=longest.config.eval.every,
      longest=longest.steps,
    )

  def next(self, step: int) -> int:
    """The first step after `step` at which something happens."""
    cadences = [every for every in (self.checkpoint_every, self.evaluate_every) if every]
    events = {self.end, *self.stages, *self.branches, *self.horizons, *(step + n - step % n for n in cadences)}
    return min(event for event in events if event > step)

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is due at `step`."""
    return step % self.checkpoint_every == 0 and step < self.longest

  def evaluates(self, step: int) -> bool:
    """Whether an evaluation during training is due at `step`."""
    return self.evaluate_every > 0 and step % self.evaluate_every == 0 and step < self.longest


@dataclasses.dataclass(frozen=True)
class Dispatched:
  """Steps that were dispatched to the device, which may still be computing them."""

  first: int
  count: int
  metrics: Callable[[], dict[str, np.ndarray]]  # waits for the device
  layers: list[LayerStatistics] | None  # of each member, where the config asks for them at this step


class Pending:
  """The last dispatched steps, whose metrics are read one call later so that the device never waits for the host."""

  def __init__(self, read: Callable[[Dispatched], bool]):
    """`read` logs the metrics of steps, and returns whether every member has diverged."""
    self._read = read
    self._last: Dispatched | None = None
    self.all_diverged = False

  def put(self, dispatched: Dispatched) -> None:
    """Reads the metrics of the previous steps while the device computes these."""
    self.drain()
    self._last = None if self.all_diverged else dispatched

  def drain(self) -> bool:
    """Waits for the unread metrics and reads them; returns whether every member has diverged."""
    last, self._last = self._last, None
    if last is not None:
      self.all_diverged = self._read(last)
    return self.all_diverged
