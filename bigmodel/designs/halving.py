"""Successive halving and Hyperband: at each rung, only the runs that are best on held-out data continue."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from bigmodel import optim
from bigmodel.config import require
from bigmodel.designs.design import CountsOf, Design, Planned, Settings, no_settings
from bigmodel.train import stages
from bigmodel.train.run import Run

UNDECAYED = 0.1  # a learning rate above this share of its peak counts as not decayed


@dataclasses.dataclass(frozen=True)
class Halving:
  """Successive halving (Jamieson and Talwalkar 2016): at each rung the best 1 in `factor` continue, the others stop.

  Runs are compared by the study's measure on held-out data, because the training loss favours weak regularisation.

  Rungs are at powers of 1 / `factor` of the horizon, the first at the share `first` or just before it.
  """

  design: Design
  first: float = 1 / 9
  factor: int = 3

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(
      0 < self.first < 1 and self.factor > 1,
      f"study design: first {self.first} must lie between 0 and 1, and factor {self.factor} above 1",
    )
    return [dataclasses.replace(run, role="halving") for run in self.design.runs(counts_of, settings)]

  def rungs(self, steps: int) -> list[int]:
    """Returns the steps at which runs of this horizon are compared."""
    count = math.ceil(math.log(1 / self.first, self.factor) - 1e-9)
    return sorted({max(1, round(steps * self.factor**-k)) for k in range(1, count + 1)})

  def brackets(self, runs: Sequence[Run]) -> list[tuple["Halving", list[Run]]]:
    """Splits the runs into brackets. The runs of a bracket are compared with each other, at the bracket's rungs."""
    return [(self, list(runs))]

  def survivors(self, losses: Mapping[str, float]) -> set[str]:
    """Returns the ids of the runs that continue, given the losses of all runs at a rung."""
    count = max(1, math.ceil(len(losses) / self.factor))
    return set(sorted(losses, key=lambda run_id: (losses[run_id], run_id))[:count])


class Hyperband(Halving):
  """Successive halving in several brackets with different first rungs (Li et al. 2017), each with a part of the runs.

  Settings that need many steps to show their advantage survive in the later brackets. The earliest first rung is at the
  share `first` of the horizon.
  """

  def brackets(self, runs: Sequence[Run]) -> list[tuple[Halving, list[Run]]]:
    """Splits the runs into brackets of similar cost: the earlier the first rung of a bracket, the more runs it has."""
    most = max(1, math.ceil(math.log(1 / self.first, self.factor) - 1e-9))
    shares = [self.factor**s / (s + 1) for s in range(most + 1)]
    left, brackets = sorted(runs, key=lambda run: run.run_id), []  # an order that does not depend on the axes
    for s in range(most, -1, -1):
      count = len(left) if s == 0 else min(len(left), round(len(runs) * shares[s] / sum(shares)))
      part, left = left[:count], left[count:]
      if part:
        brackets.append((Halving(self.design, float(self.factor) ** -s, self.factor), part))
    return brackets


def undecayed(design: Halving, runs: Sequence[Run]) -> str:
  """Returns a warning if runs are compared at rungs before their learning rate has decayed, otherwise ''.

  Runs that are evaluated on an average of their parameters need no decay.
  """
  shares: dict[int, tuple[float, str]] = {}
  for bracket, members in design.brackets(runs):
    for run in members:
      if optim.is_averaged(run.config):
        continue
      for step in bracket.rungs(run.steps):
        share = _share_of_peak(run, step)
        if share > UNDECAYED and share > shares.get(step, (0.0, ""))[0]:
          shares[step] = (share, run.config.optim.schedule)
  if not shares:
    return ""
  steps = sorted(shares)
  schedules = ", ".join(sorted({schedule for _, schedule in shares.values()}))
  return (
    f"{type(design).__name__} compares runs at step {', '.join(map(str, steps))} of {runs[0].steps}, where the learning"
    f" rate (optim.schedule {schedules}) is still at {', '.join(f'{shares[step][0]:.0%}' for step in steps)} of its"
    " peak. Measuring before the rate has decayed favours settings that are ahead early, such as smaller learning"
    " rates. A larger `first` compares later; runs that are evaluated on averaged parameters"
    " (optim.average, or schedule_free) can be compared at any step."
  )


def _share_of_peak(run: Run, step: int) -> float:
  """Returns the learning rate of the step before a rung, as a share of its peak."""
  stage = stages.at(run.config, step)
  h = optim.hyperparameters(stage.config, stage.horizon, stage.begin)
  return float(optim.schedules.factor(stage.config.optim.schedule, jnp.int32(step - 1), h))
