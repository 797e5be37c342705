"""Every size on every amount of data: does a larger model, or more data, pay off?"""

import dataclasses
import itertools
from collections.abc import Sequence

from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings


@dataclasses.dataclass(frozen=True)
class Fractions:
  """Every size on every amount of data, for a number of epochs: does a larger model, or more data, pay off?

  `axis` is data.tokens or data.examples.
  """

  sizes: Sequence[Overrides]
  amounts: Sequence[int]
  epochs: float = 1.0
  axis: str = "data.tokens"
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    runs = []
    for size, amount in itertools.product(self.sizes, self.amounts):
      counts, tokens = counts_of(size), round(self.epochs * amount)
      repeat = {"data.repeat": True} if self.epochs >= 1 else {}  # the last batch may begin another epoch
      overrides = {**size, self.axis: amount, "train.tokens": tokens, **repeat, **settings(counts.params_total, tokens)}
      runs.append(Planned("fit", overrides, counts.flops_in(self.convention, tokens)))
    return runs
