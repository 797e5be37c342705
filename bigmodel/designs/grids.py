"""Grids: the product of axes, or an explicit list of runs."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from bigmodel.declarations import Value
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings, tokens_of


@dataclasses.dataclass(frozen=True)
class Listed:
  """An explicit list of runs, each given by its overrides."""

  overrides: Sequence[Overrides]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    runs = []
    for overrides in self.overrides:
      counts, tokens = counts_of(overrides), tokens_of(overrides)
      chosen = settings(counts.params_total, tokens)
      runs.append(Planned("fit", {**chosen, **overrides}, counts.flops_in(self.convention, tokens)))
    return runs


@dataclasses.dataclass(frozen=True)
class Grid:
  """The product of axes `{'group.field': values}`."""

  axes: Mapping[str, Sequence[Value]]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    cells = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
    return Listed(cells, self.convention).runs(counts_of, settings)
