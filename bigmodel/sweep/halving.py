"""Successive halving and Hyperband: most runs stop early, at rungs, where others do better."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from bigmodel import record
from bigmodel.config import require
from bigmodel.parallel import hosts
from bigmodel.sweep.designs import CountsOf, Design, Planned, Settings, no_settings
from bigmodel.train.results import read_rungs, stopped_record
from bigmodel.train.run import Run


@dataclasses.dataclass(frozen=True)
class Halving:
  """Successive halving (Jamieson and Talwalkar 2016): at each rung the best 1 in `factor` go on, the others stop.

  Rungs are at powers of 1 / `factor` of the horizon, the first at the share `first` or just before it.
  """

  design: Design
  first: float = 1 / 9
  factor: int = 3

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(0 < self.first < 1 and self.factor > 1, f"study design: first {self.first}, factor {self.factor}")
    return [dataclasses.replace(one, role="halving") for one in self.design.runs(counts_of, settings)]

  def rungs(self, steps: int) -> list[int]:
    """The steps at which runs of this horizon are compared."""
    count = math.ceil(math.log(1 / self.first, self.factor) - 1e-9)
    return sorted({max(1, round(steps * self.factor**-k)) for k in range(1, count + 1)})

  def brackets(self, runs: Sequence[Run]) -> list[tuple["Halving", list[Run]]]:
    """Parts of the runs that are compared among themselves, each with its rungs."""
    return [(self, list(runs))]

  def stays(self, losses: Mapping[str, float]) -> set[str]:
    """Of runs by id with their losses at a rung, those that go on."""
    count = max(1, math.ceil(len(losses) / self.factor))
    return set(sorted(losses, key=lambda run_id: (losses[run_id], run_id))[:count])


class Hyperband(Halving):
  """Successive halving with several first rungs (Li et al. 2017), each for a part of the runs.

  So what is slow to show its worth is found too. The least first rung is at `first` of the horizon.
  """

  def brackets(self, runs: Sequence[Run]) -> list[tuple[Halving, list[Run]]]:
    """Brackets that cost about the same: the earlier the first rung, the more runs."""
    most = max(1, math.ceil(math.log(1 / self.first, self.factor) - 1e-9))
    shares = [self.factor**s / (s + 1) for s in range(most + 1)]
    left, found = sorted(runs, key=lambda run: run.run_id), []  # an order that has nothing to do with the axes
    for s in range(most, -1, -1):
      count = len(left) if s == 0 else min(len(left), round(len(runs) * shares[s] / sum(shares)))
      part, left = left[:count], left[count:]
      if part:
        found.append((Halving(self.design, float(self.factor) ** -s, self.factor), part))
    return found


def run(design: Halving, runs: Sequence[Run], train_them: Callable[[dict[str, Run], int], None]) -> None:
  """Trains runs from rung to rung, to a step or (0) to the end; what is known of rungs on disk is not done again."""
  require(len({run.steps for run in runs}) == 1, "study design: runs that are compared at rungs have one horizon")
  for halving, members in design.brackets(runs):
    alive = {run.run_id: run for run in members}
    for rung in halving.rungs(members[0].steps):
      train_them(alive, rung)
      losses = hosts.first(lambda rung=rung, alive=alive: {i: _loss(run, rung) for i, run in alive.items()})
      stays = halving.stays({run_id: math.inf if loss is None else loss for run_id, loss in losses.items()})
      for run_id in sorted(alive.keys() - stays):
        hosts.first(lambda run=alive[run_id], rung=rung: _stop(run, rung))
      alive = {run_id: run for run_id, run in alive.items() if run_id in stays}
    train_them(alive, 0)


def _stop(run: Run, rung: int) -> None:
  if record.read(run.folder) is None:
    stopped_record(run, rung)


def _loss(run: Run, rung: int) -> float | None:
  """At a rung; None where a run diverged or failed before it."""
  return read_rungs(run).get(str(rung))
