"""IsoFLOP grids (Hoffmann et al. 2022, approach 2), and scans that check their learning rates."""

import dataclasses
from collections.abc import Sequence

from bigmodel.accounting import CONVENTIONS, params_in
from bigmodel.config import require_choice
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings
from bigmodel.errors import UserError


@dataclasses.dataclass(frozen=True)
class IsoFlop:
  """Every budget with every size whose tokens per parameter lie within `ratios`.

  Parameters are counted by the design's convention (`accounting.params_in`).
  """

  budgets: Sequence[float]
  sizes: Sequence[Overrides]
  ratios: tuple[float, float] = (0.0, float("inf"))
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require_choice("study.design.convention", self.convention, CONVENTIONS)
    runs = []
    for budget in sorted(self.budgets):
      cell = [run for size in self.sizes if (run := self.cell(budget, size, counts_of, settings))]
      if not cell:
        raise UserError(f"study design: no size has {self.ratios} tokens per parameter at {budget:g} FLOPs")
      runs += cell
    return runs

  def cell(
    self, budget: float, size: Overrides, counts_of: CountsOf, settings: Settings, role: str = "fit"
  ) -> Planned | None:
    """Returns the run of one budget and size, or None if its tokens per parameter are outside `ratios`."""
    counts = counts_of(size)
    tokens = round(budget / counts.flops_in(self.convention, 1))
    if role == "fit" and not self.ratios[0] <= tokens / params_in(counts.params(), self.convention) <= self.ratios[1]:
      return None
    return Planned(role, {**size, "train.tokens": tokens, **settings(counts.params_total, tokens)}, budget)


@dataclasses.dataclass(frozen=True)
class Scan:
  """Other learning rates for some runs of the design, to check that the rule's rate is not at an edge.

  `factors` multiply `optim.lr`; `cells` are (budget, index of the size).
  """

  factors: Sequence[float]
  cells: Sequence[tuple[float, int]]

  def runs(self, design: IsoFlop, counts_of: CountsOf, settings: Settings) -> list[Planned]:
    runs = []
    for budget, index in self.cells:
      if not 0 <= index < len(design.sizes):
        raise UserError(f"study scan: there is no size {index}; the design has {len(design.sizes)}")
      center = design.cell(budget, design.sizes[index], counts_of, settings, role="scan")
      assert center is not None
      rate = center.overrides.get("optim.lr")
      if not isinstance(rate, int | float):
        raise UserError("study scan: settings(params, tokens) must return optim.lr, the learning rate to scan")
      for factor in (1.0, *self.factors):
        lr = float(f"{rate * factor:.4g}")
        runs.append(Planned("scan", {**center.overrides, "optim.lr": lr}, budget))
    return runs
