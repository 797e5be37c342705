"""Designs: which runs a study consists of, as overrides of its config."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bigmodel.accounting import CONVENTIONS, params_in
from bigmodel.config import require_choice
from bigmodel.errors import UserError

Overrides = dict[str, Any]
# (overrides of a size) -> its accounting.Counts
CountsOf = Callable[[Overrides], Any]
# (params_total, tokens) -> overrides: the rule that gives each run its own settings
Settings = Callable[[int, int], Overrides]


@dataclasses.dataclass(frozen=True)
class Planned:
  """One run of a study: what it is for, and how its config differs from the base."""

  role: str  # fit | scan | seed | target
  overrides: Overrides
  budget: float = 0.0


def closest_size(sizes: Sequence[Overrides], counts_of: CountsOf, convention: str, N: float) -> Overrides:
  """The size whose parameters are nearest to N in their logs, both counted by the convention of the law."""
  return min(sizes, key=lambda size: abs(math.log(params_in(counts_of(size).params(), convention) / N)))


def no_settings(params: int, tokens: int) -> Overrides:
  del params, tokens
  return {}


@dataclasses.dataclass(frozen=True)
class IsoFlop:
  """Every budget with every size whose tokens per parameter lie within `ratios`.

  Parameters are counted as laws of the design's convention count them (`accounting.params_in`).
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
    """The run of one budget and size, or None where its ratio is out of bounds."""
    counts = counts_of(size)
    tokens = round(budget / counts.flops(1)[self.convention])
    if role == "fit" and not self.ratios[0] <= tokens / params_in(counts.params(), self.convention) <= self.ratios[1]:
      return None
    return Planned(role, {**size, "train.tokens": tokens, **settings(counts.params_total, tokens)}, budget)


@dataclasses.dataclass(frozen=True)
class Grid:
  """The product of axes `{'group.field': values}`."""

  axes: Mapping[str, Sequence[Any]]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    cells = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
    return Listed(cells, self.convention).runs(counts_of, settings)


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Every size at every multiple of tokens per parameter (20 is Chinchilla's).

  Parameters are counted as laws of the design's convention count them (`accounting.params_in`).
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
      runs.append(Planned("fit", overrides, counts.flops(tokens)[self.convention]))
    return runs


@dataclasses.dataclass(frozen=True)
class Fractions:
  """Every size on every amount of data, a number of times over: does a larger model, or more data, pay off?

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
      repeat = {"data.repeat": True} if self.epochs >= 1 else {}  # the last batch may begin another round
      overrides = {**size, self.axis: amount, "train.tokens": tokens, **repeat, **settings(counts.params_total, tokens)}
      runs.append(Planned("fit", overrides, counts.flops(tokens)[self.convention]))
    return runs


@dataclasses.dataclass(frozen=True)
class Listed:
  """The runs that a list of overrides says, one each."""

  overrides: Sequence[Overrides]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    runs = []
    for overrides in self.overrides:
      counts, tokens = counts_of(overrides), int(overrides.get("train.tokens", 0))
      own = settings(counts.params_total, tokens)
      runs.append(Planned("fit", {**own, **overrides}, counts.flops(tokens)[self.convention]))
    return runs


class Design(Protocol):
  """What a study's `design` is: anything that says its runs, counted by a convention."""

  @property
  def convention(self) -> str: ...

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]: ...


@dataclasses.dataclass(frozen=True)
class Scan:
  """Learning rates around the rule's own, at some runs of the design, to show that it is not at an edge.

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
      if "optim.lr" not in center.overrides:
        raise UserError("study scan: settings(params, tokens) must say optim.lr, the rule that is scanned")
      for factor in (1.0, *self.factors):
        lr = float(f"{center.overrides['optim.lr'] * factor:.4g}")
        runs.append(Planned("scan", {**center.overrides, "optim.lr": lr}, budget))
    return runs


def repeat_seeds(run: Planned, seeds: int) -> list[Planned]:
  """The run again with other seeds of initialisation and data order."""
  return [Planned("seed", {**run.overrides, "seed": seed, "data.seed": seed}, run.budget) for seed in range(1, seeds)]
