"""Branches: with a rate that stays until it decays, runs of several horizons have their beginning in common.

The longest of them is the trunk: where a shorter one's decay begins it leaves that run a checkpoint, from which the
other goes on as if it had come there by itself (Haegele et al. 2024).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from bigmodel import optim
from bigmodel.config import digest, flatten, require
from bigmodel.designs.design import CountsOf, Design, Overrides, Planned, Settings, no_settings
from bigmodel.train.configs import identity
from bigmodel.train.run import Branch, Run

# Schedules that do not know their horizon before they decay, and what of a config says the horizon and the decay.
STEADY = ("wsd", "constant", "inverse_sqrt")
HORIZON = ("train.tokens", "train.steps", "optim.warmup", "optim.decay", "optim.final")


@dataclasses.dataclass(frozen=True)
class Branches:
  """Every run of a design at every horizon, with one warm-up for all and a decay of its own: one trunk serves all.

  `warmup` is a share of the shortest horizon, `decay` of each.
  """

  design: Design
  tokens: Sequence[int]
  decay: float = 0.2
  warmup: float = 0.1

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(bool(self.tokens) and min(self.tokens) > 0, f"study design: horizons {self.tokens}")
    least, runs = min(self.tokens), []
    for one in self.design.runs(counts_of, no_settings):
      counts = counts_of(one.overrides)
      for tokens in sorted(self.tokens):
        own: Overrides = {
          "train.tokens": tokens, "optim.schedule": "wsd", "optim.decay": self.decay,
          "optim.warmup": self.warmup * least / tokens,
        }  # fmt: skip
        overrides = {**settings(counts.params_total, tokens), **one.overrides, **own}
        runs.append(dataclasses.replace(one, overrides=overrides, budget=counts.flops_in(self.convention, tokens)))
    return runs


def find(runs: Mapping[str, Run]) -> dict[str, Branch]:
  """Of each run that has its beginning in common with a longer one: which, and up to which step."""
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
  found = {}
  for group in groups.values():
    longest, trunk = max(group, key=lambda pair: pair[0])
    for steady, run in group:
      if run is not trunk and steady < longest:
        found[run.run_id] = Branch(trunk.run_id, steady)
  return found
