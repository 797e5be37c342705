"""Branches: runs of several horizons share their first steps if their learning rate is constant before it decays.

The longest run is the trunk. The trunk saves a checkpoint at the step where the decay of a shorter run begins. The
shorter run branches from there, with the same results as if it had trained alone (Haegele et al. 2024).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from bigmodel import optim
from bigmodel.config import digest, flatten, require
from bigmodel.designs.design import CountsOf, Design, Overrides, Planned, Settings, no_settings
from bigmodel.train.configs import identity
from bigmodel.train.run import Branch, Run

# Schedules whose learning rate before the decay does not depend on the horizon, and the fields of horizon and decay.
STEADY = ("wsd", "constant", "inverse_sqrt")
HORIZON = ("train.tokens", "train.steps", "optim.warmup", "optim.decay", "optim.final")


@dataclasses.dataclass(frozen=True)
class Branches:
  """Every run of a design at every horizon. All horizons share one warm-up, and each has its own decay.

  `warmup` is a share of the shortest horizon, `decay` a share of each horizon.
  """

  design: Design
  tokens: Sequence[int]
  decay: float = 0.2
  warmup: float = 0.1

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(bool(self.tokens) and min(self.tokens) > 0, f"study design: tokens {self.tokens}: list positive horizons")
    least, runs = min(self.tokens), []
    for run in self.design.runs(counts_of, no_settings):
      counts = counts_of(run.overrides)
      for tokens in sorted(self.tokens):
        schedule: Overrides = {
          "train.tokens": tokens,
          "optim.schedule": "wsd",
          "optim.decay": self.decay,
          "optim.warmup": self.warmup * least / tokens,
        }
        overrides = {**settings(counts.params_total, tokens), **run.overrides, **schedule}
        runs.append(dataclasses.replace(run, overrides=overrides, budget=counts.flops_in(self.convention, tokens)))
    return runs


def find(runs: Mapping[str, Run]) -> dict[str, Branch]:
  """Returns, by run id, the branch of each run that shares its first steps with a longer run."""
  groups: dict[str, list[tuple[int, Run]]] = {}
  for run in runs.values():
    if run.config.optim.schedule not in STEADY or run.config.train.stages:
      continue
    h = optim.hyperparameters(run.config, run.steps)
    steady = run.steps - int(h.decay) if run.config.optim.schedule == "wsd" else run.steps
    if steady <= int(h.warmup):
      continue
    key = digest(identity(flatten(run.config)), without=HORIZON) + str(int(h.warmup))
    groups.setdefault(key, []).append((steady, run))
  branches = {}
  for group in groups.values():
    longest, trunk = max(group, key=lambda pair: pair[0])
    for steady, run in group:
      if run is not trunk and steady < longest:
        branches[run.run_id] = Branch(trunk.run_id, steady)
  return branches
