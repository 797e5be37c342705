"""Spaces: what the axes of a sweep can be, and designs that choose points of them."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigmodel.config import parse_value, require
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings
from bigmodel.designs.grids import Grid, Listed

METHODS = ("random", "sobol")


@dataclasses.dataclass(frozen=True)
class Between:
  """Numbers from `low` to `high`, alike or in their logs."""

  low: float
  high: float
  log: bool = False
  integer: bool = False

  def at(self, share: float) -> Any:
    """The number a share of the way from low to high."""
    if self.log:
      value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
    else:
      value = self.low + share * (self.high - self.low)
    return round(value) if self.integer else float(f"{value:.4g}")

  def check(self, name: str) -> None:
    require(self.low < self.high, f"axis {name}: {self.low} is not below {self.high}")
    require(self.low > 0 or not self.log, f"axis {name}: {self.low} has no log")


@dataclasses.dataclass(frozen=True)
class When:
  """An axis that is there only where another has one of these values."""

  axis: str
  values: Sequence[Any]
  domain: "Between | Sequence[Any]"


Domain = Between | When | Sequence[Any]


def _at(domain: Domain, share: float) -> Any:
  if isinstance(domain, Between):
    return domain.at(share)
  assert not isinstance(domain, When)
  return domain[min(int(share * len(domain)), len(domain) - 1)]


@dataclasses.dataclass(frozen=True)
class Space:
  """`points` points of the product of axes: at random, or of a Sobol sequence, which leaves fewer gaps."""

  axes: Mapping[str, Domain]
  points: int
  method: str = "sobol"
  seed: int = 0
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    return Listed(self.cells(), self.convention).runs(counts_of, settings)

  def cells(self) -> list[Overrides]:
    require(self.method in METHODS, f"sweep: no method {self.method!r}; known: {', '.join(METHODS)}")
    require(self.points > 0, f"sweep: {self.points} points")
    for name, domain in self.axes.items():
      inner = domain.domain if isinstance(domain, When) else domain
      if isinstance(inner, Between):
        inner.check(name)
    return [_point(self.axes, shares) for shares in self._shares()]

  def _shares(self) -> np.ndarray:
    """[points, axes] in the unit cube; more points are these and others."""
    from scipy.stats import qmc

    if self.method == "random":
      return np.random.default_rng(self.seed).random((self.points, len(self.axes)))
    sequence = qmc.Sobol(len(self.axes), rng=np.random.default_rng(self.seed))
    return sequence.random_base2(math.ceil(math.log2(self.points)))[: self.points]


def _point(axes: Mapping[str, Domain], shares: Sequence[float]) -> Overrides:
  found: Overrides = {}
  for (name, domain), share in zip(axes.items(), shares, strict=True):
    if isinstance(domain, When):
      known = list(axes)[: list(axes).index(name)]
      require(domain.axis in known, f"axis {name}: depends on {domain.axis}, which is no axis before it")
      if found.get(domain.axis) not in domain.values:
        continue
      domain = domain.domain
    found[name] = _at(domain, float(share))
  return found


@dataclasses.dataclass(frozen=True)
class Zipped:
  """The first values of all axes, the second ones, and so on."""

  axes: Mapping[str, Sequence[Any]]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    lengths = {name: len(values) for name, values in self.axes.items()}
    require(len(set(lengths.values())) == 1, f"sweep: zipped axes are of different lengths: {lengths}")
    cells = [dict(zip(self.axes, values, strict=True)) for values in zip(*self.axes.values(), strict=True)]
    return Listed(cells, self.convention).runs(counts_of, settings)


@dataclasses.dataclass(frozen=True)
class Repeated:
  """Every run of a design with so many seeds, of initial values and of the order of the data."""

  design: Any
  seeds: int

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(self.seeds > 0, f"sweep: {self.seeds} seeds")
    return [
      dataclasses.replace(one, overrides={**one.overrides, "seed": seed, "data.seed": seed})
      for one in self.design.runs(counts_of, settings)
      for seed in range(self.seeds)
    ]


def of_arguments(axes: Sequence[str], points: int, method: str, seeds: int) -> Any:
  """The design of `--axis NAME=VALUE,VALUE,...` and `--axis NAME=log:LOW:HIGH[:COUNT]` (or lin:)."""
  found = dict(map(parse_axis, axes))
  if points:
    design: Any = Space({name: domain for name, (domain, _) in found.items()}, points, method)
  else:
    for name, (_, count) in found.items():
      require(count > 0, f"--axis {name}: say how many values, as in log:LOW:HIGH:COUNT, or --points for all axes")
    design = Grid({name: _spaced(domain, count) for name, (domain, count) in found.items()})
  return Repeated(design, seeds) if seeds > 1 else design


def parse_axis(text: str) -> tuple[str, tuple[Domain, int]]:
  """`(name, (domain, number of values or 0))`."""
  name, equals, said = text.partition("=")
  require(bool(equals and said), f"--axis {text}: write NAME=VALUE,VALUE or NAME=log:LOW:HIGH:COUNT")
  kind, *numbers = said.split(":")
  if kind not in ("log", "lin"):
    values = parse_value(said)
    values = list(values) if isinstance(values, tuple) else [parse_value(part) for part in said.split(",")]
    return name, (values, len(values))
  try:
    low, high, *rest = (float(number) for number in numbers)
    count = int(rest[0]) if rest else 0
  except (ValueError, IndexError):
    require(False, f"--axis {text}: after {kind} come LOW:HIGH or LOW:HIGH:COUNT")
    raise
  whole = all(number.lstrip("-").isdigit() for number in numbers[:2]) and high - low >= max(2, count - 1)
  domain = Between(low, high, kind == "log", integer=whole)
  domain.check(name)
  return name, (domain, count)


def _spaced(domain: Domain, count: int) -> list[Any]:
  if not isinstance(domain, Between):
    return list(domain) if not isinstance(domain, When) else []
  values = [domain.at(i / max(1, count - 1)) for i in range(count)]
  return [value for value, _ in itertools.groupby(values)]
