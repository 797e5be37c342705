"""The interface of designs. A design returns the runs of a study, as overrides of the study's config."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from bigmodel.accounting import Counts, params_in
from bigmodel.declarations import Value

Overrides = Mapping[str, Value]  # {"group.field": value}
CountsOf = Callable[[Overrides], Counts]  # the parameters and FLOPs of a size
Settings = Callable[[int, int], Overrides]  # (params_total, tokens) -> the settings of that run, such as optim.lr


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run that a design plans: its role, and how its config differs from the study's."""

  role: str  # fit | scan | seed | target
  overrides: Overrides
  budget: float = 0.0


def no_settings(params: int, tokens: int) -> Overrides:
  del params, tokens
  return {}


class Design(Protocol):
  """The set of runs of a study. `convention` says how FLOPs and parameters are counted."""

  @property
  def convention(self) -> str: ...

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]: ...


def tokens_of(overrides: Overrides) -> int:
  """Returns the number of tokens that a run trains on; 0 if its overrides do not set it."""
  tokens = overrides.get("train.tokens", 0)
  assert isinstance(tokens, int | float)
  return int(tokens)


def closest_size(sizes: Sequence[Overrides], counts_of: CountsOf, convention: str, N: float) -> Overrides:
  """Returns the size whose number of parameters is closest to N on a log scale, counted by the convention."""
  return min(sizes, key=lambda size: abs(math.log(params_in(counts_of(size).params(), convention) / N)))


def repeat_seeds(run: Planned, seeds: int) -> list[Planned]:
  """Returns repetitions of a run with other seeds for its initial values and its data order."""
  return [Planned("seed", {**run.overrides, "seed": seed, "data.seed": seed}, run.budget) for seed in range(1, seeds)]
