"""Trains the runs of a sweep from pause to pause, and stops settings that cannot become the best.

Every decision follows from evaluations on disk, in the order of the pauses, so that a sweep that was interrupted takes
the same decisions again.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from bigmodel import record
from bigmodel.config import digest, flatten
from bigmodel.designs.early_stopping import EarlyStopping
from bigmodel.laws import last_loss
from bigmodel.laws.last_loss import LastLoss
from bigmodel.parallel import hosts
from bigmodel.record import StoppedBy
from bigmodel.study import rungs
from bigmodel.study.leaderboard import SEEDS
from bigmodel.train.configs import identity
from bigmodel.train.results import as_measured, stopped_record
from bigmodel.train.run import Run

TrainTo = Callable[[dict[str, Run], int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """Runs that differ only in their seeds."""

  runs: tuple[Run, ...]


def run(design: EarlyStopping, runs: Sequence[Run], measure: str, train_to: TrainTo) -> None:
  """Trains runs from pause to pause by calling `train_to(runs, step)`, where step 0 means the end.

  Measurements on disk are reused. If the design has grown, the decisions are taken again, and runs that were stopped
  resume where they are no longer hopeless.
  """
  _Sweep(design, runs, measure, train_to).train()


class _Sweep:
  """The settings under way and those that have finished."""

  def __init__(self, design: EarlyStopping, runs: Sequence[Run], measure: str, train_to: TrainTo):
    self._design, self._measure, self._train_to = design, measure, train_to
    self._steps = runs[0].steps
    self._pauses = design.pauses(self._steps)
    by_setting: dict[str, list[Run]] = {}
    for each in runs:
      by_setting.setdefault(digest(identity(flatten(each.config)), without=SEEDS), []).append(each)
    self._under_way: list[Setting] = [Setting(tuple(members)) for members in by_setting.values()]
    self._finished: dict[Setting, np.ndarray] = {}  # losses at all pauses and at the end

  def train(self) -> None:
    for index, pause in enumerate(self._pauses):
      self._train(self._under_way, pause)
      if self._design.may_stop(pause, self._steps):
        self._judge(self._pauses[: index + 1])
    self._train(self._under_way, 0)

  def _train(self, settings: Sequence[Setting], until: int) -> None:
    members = {run.run_id: run for setting in settings for run in setting.runs}
    if members:
      rungs.resume_stopped(members, until)
      self._train_to(members, until)

  def _judge(self, pauses: Sequence[int]) -> None:
    """Finishes a setting that is ahead, and stops those that are hopeless beside the best finished one."""
    curves = self._curves(self._under_way, pauses)
    ahead = min(curves, key=lambda setting: curves[setting][-1], default=None)
    if ahead is not None and math.isfinite(curves[ahead][-1]) and self._is_better(curves[ahead]):
      for until in (*self._pauses[len(pauses) :], 0):
        self._train([ahead], until)
      self._under_way.remove(ahead)
      self._finished[ahead] = self._curves([ahead], self._pauses, with_end=True)[ahead]
    for setting in list(self._under_way):
      stopped_by = self._stopped_by(curves[setting])
      if stopped_by is not None:
        self._under_way.remove(setting)
        hosts.first(lambda setting=setting, stopped_by=stopped_by: _stop(setting, pauses[-1], stopped_by))

  def _best(self) -> tuple[float, np.ndarray] | None:
    """The last loss and the curve of the best finished setting; None if none finished without divergence."""
    best = min(self._finished.values(), key=lambda curve: curve[-1], default=None)
    return (float(best[-1]), best) if best is not None and np.isfinite(best).all() else None

  def _forecast(self, curve: np.ndarray, reference: np.ndarray) -> LastLoss:
    return last_loss.forecast(np.array([*self._pauses, self._steps]), curve, reference)

  def _is_better(self, curve: np.ndarray) -> bool:
    """Whether a setting is forecast to end below the best finished one."""
    best = self._best()
    return best is None or self._forecast(curve, best[1]).predicted < best[0]

  def _stopped_by(self, curve: np.ndarray) -> StoppedBy | None:
    """The forecast by which a setting is hopeless, or None if it is not."""
    best = self._best()
    if best is None:
      return None
    if not np.isfinite(curve).all():  # all of its runs have diverged
      return StoppedBy(self._steps, math.inf, math.inf, self._design.level, best[0])
    ahead = self._forecast(curve, best[1])
    low = ahead.low(self._design.level)
    return StoppedBy(self._steps, ahead.predicted, low, self._design.level, best[0]) if low > best[0] else None

  def _curves(
    self, settings: Sequence[Setting], pauses: Sequence[int], with_end: bool = False
  ) -> dict[Setting, np.ndarray]:
    """The mean losses of settings at the pauses, and at the end; infinite where all runs of a setting diverged."""

    def read() -> list[np.ndarray]:
      return [self._curve(setting, pauses, with_end) for setting in settings]

    return dict(zip(settings, hosts.first(read), strict=True))

  def _curve(self, setting: Setting, pauses: Sequence[int], with_end: bool) -> np.ndarray:
    curves = []
    for member in setting.runs:
      values = [rungs.value_at(member, pause, self._measure) for pause in pauses]
      values += [self._last(member)] if with_end else []
      if all(value is not None and math.isfinite(value) for value in values):
        curves.append(values)
    return np.mean(curves, axis=0) if curves else np.full(len(pauses) + with_end, math.inf)

  def _last(self, member: Run) -> float | None:
    ended = record.read(member.folder)
    return as_measured(ended, self._measure).loss_eval if ended is not None and ended.finished else None


def _stop(setting: Setting, step: int, stopped_by: StoppedBy) -> None:
  for member in setting.runs:
    if record.read(member.folder) is None:
      stopped_record(member, step, stopped_by)
