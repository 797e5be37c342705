"""Ladders: every size at every ratio of tokens to parameters."""

import dataclasses
import itertools
from collections.abc import Sequence

from bigmodel.accounting import params_in
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Every size with every number of tokens per parameter (20 is Chinchilla's).

  Parameters are counted by the design's convention (`accounting.params_in`).
  """

  sizes: Sequence[Overrides]
  ratios: Sequence[float] = (20.0,)
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    runs = []
    for size, ratio in itertools.product(self.sizes, self.ratios):
      counts = counts_of(size)
      tokens = round(ratio * params_in(counts.params(), self.convention))
      overrides = {**size, "train.tokens": tokens, **settings(counts.params_total, tokens)}
      runs.append(Planned("fit", overrides, counts.flops_in(self.convention, tokens)))
    return runs
