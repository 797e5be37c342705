"""Spaces: the axes of sweeps, and designs that choose points in their product."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from bigmodel.config import parse_value, require
from bigmodel.declarations import Value
from bigmodel.designs.design import CountsOf, Design, Overrides, Planned, Settings, no_settings
from bigmodel.designs.grids import Grid, Listed

METHODS = ("random", "sobol")
MOST_VALUES = 100_000  # of one axis


@dataclasses.dataclass(frozen=True)
class Between:
  """Numbers from `low` to `high`, spread evenly on a linear or a log scale."""

  low: float
  high: float
  log: bool = False
  integer: bool = False

  def at(self, share: float) -> float:
    """Returns the number at a share of the way from low to high, rounded to four digits."""
    if self.log:
      value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
    else:
      value = self.low + share * (self.high - self.low)
    return round(value) if self.integer else float(f"{value:.4g}")

  def check(self, name: str) -> None:
    require(math.isfinite(self.low) and math.isfinite(self.high), f"axis {name}: {self.low}, {self.high}: not finite")
    require(self.low < self.high, f"axis {name}: {self.low} is not below {self.high}")
    require(self.low > 0 or not self.log, f"axis {name}: a log axis needs low > 0, not {self.low}")


Plain = Between | Sequence[Value]


@dataclasses.dataclass(frozen=True)
class When:
  """An axis that applies only where another axis has one of these values."""

  axis: str
  values: Sequence[Value]
  domain: Plain


Domain = Plain | When


def plain(domain: Domain) -> Plain:
  """Returns the values of an axis, without its condition."""
  return domain.domain if isinstance(domain, When) else domain


def applies(axes: Mapping[str, Domain], name: str, point: Overrides) -> bool:
  """Whether an axis applies at a point, which has the values of the axes before it."""
  domain = axes[name]
  if not isinstance(domain, When):
    return True
  before = list(axes)[: list(axes).index(name)]
  require(domain.axis in before, f"axis {name}: depends on {domain.axis}, which is not an earlier axis")
  return point.get(domain.axis) in domain.values


@dataclasses.dataclass(frozen=True)
class Space:
  """`points` points of the product of axes, drawn at random or from a Sobol sequence, which leaves smaller gaps."""

  axes: Mapping[str, Domain]
  points: int
  method: str = "sobol"
  seed: int = 0
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    return Listed(self.cells(), self.convention).runs(counts_of, settings)

  def cells(self) -> list[Overrides]:
    """Returns the overrides of each point."""
    require(self.method in METHODS, f"sweep: no method {self.method!r}; known: {', '.join(METHODS)}")
    require(self.points > 0, f"sweep: {self.points} points; at least 1")
    for name, domain in self.axes.items():
      values = plain(domain)
      if isinstance(values, Between):
        values.check(name)
    return [_point(self.axes, shares) for shares in self._shares().tolist()]

  def _shares(self) -> np.ndarray:
    """Returns points of the unit cube, float[points, axes]. More points extend fewer points."""
    from scipy.stats import qmc

    if self.method == "random":
      return np.random.default_rng(self.seed).random((self.points, len(self.axes)))
    sequence = qmc.Sobol(len(self.axes), rng=np.random.default_rng(self.seed))
    return sequence.random_base2(math.ceil(math.log2(self.points)))[: self.points]


def _point(axes: Mapping[str, Domain], shares: Sequence[float]) -> Overrides:
  point: dict[str, Value] = {}
  for (name, domain), share in zip(axes.items(), shares, strict=True):
    if applies(axes, name, point):
      values = plain(domain)
      if isinstance(values, Between):
        point[name] = values.at(share)
      else:
        point[name] = values[min(int(share * len(values)), len(values) - 1)]
  return point


@dataclasses.dataclass(frozen=True)
class Zipped:
  """The first values of all axes together, then the second values, and so on."""

  axes: Mapping[str, Sequence[Value]]
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    lengths = {name: len(values) for name, values in self.axes.items()}
    require(len(set(lengths.values())) == 1, f"sweep: zipped axes have different lengths: {lengths}")
    cells = [dict(zip(self.axes, values, strict=True)) for values in zip(*self.axes.values(), strict=True)]
    return Listed(cells, self.convention).runs(counts_of, settings)


@dataclasses.dataclass(frozen=True)
class Repeated:
  """Every run of a design with several seeds, for both the initial values and the order of the data."""

  design: Design
  seeds: int

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(self.seeds > 0, f"sweep: {self.seeds} seeds; at least 1")
    return [
      dataclasses.replace(run, overrides={**run.overrides, "seed": seed, "data.seed": seed})
      for run in self.design.runs(counts_of, settings)
      for seed in range(self.seeds)
    ]


def of_arguments(axes: Sequence[str], points: int, method: str, seeds: int) -> Design:
  """Returns the design of options `--axis NAME=VALUE,VALUE,...` and `--axis NAME=log:LOW:HIGH[:COUNT]` (or lin:)."""
  pairs = [parse_axis(axis) for axis in axes]
  names = [name for name, _ in pairs]
  twice = sorted({name for name in names if names.count(name) > 1})
  require(not twice, f"--axis {', '.join(twice)}: is given twice; write all of its values in one --axis")
  parsed = dict(pairs)
  if points:
    design: Design = Space({name: domain for name, (domain, _) in parsed.items()}, points, method)
  else:
    for name, (_, count) in parsed.items():
      require(count > 0, f"--axis {name}: give the number of values, as log:LOW:HIGH:COUNT, or --points for all axes")
    design = Grid({name: _spaced(domain, count) for name, (domain, count) in parsed.items()})
  return Repeated(design, seeds) if seeds > 1 else design


def parse_axis(text: str) -> tuple[str, tuple[Plain, int]]:
  """Parses one `--axis`: returns its name, its values, and the number of values (0 if not given)."""
  name, equals, value = text.partition("=")
  require(bool(equals and value), f"--axis {text}: write NAME=VALUE,VALUE or NAME=log:LOW:HIGH:COUNT")
  kind, *numbers = value.split(":")
  if kind not in ("log", "lin"):
    parsed = parse_value(value)
    values = list(parsed) if isinstance(parsed, tuple) else [parse_value(part) for part in value.split(",")]
    return name, (values, len(values))
  try:
    low, high, *rest = (float(number) for number in numbers)
    count = int(rest[0]) if rest else 0
  except (ValueError, IndexError, OverflowError):
    require(False, f"--axis {text}: {kind} must be followed by LOW:HIGH or LOW:HIGH:COUNT")
    raise
  require(count <= MOST_VALUES, f"--axis {text}: {count:,} values; at most {MOST_VALUES:,}")
  whole = all(number.lstrip("-").isdigit() for number in numbers[:2]) and high - low >= max(2, count - 1)
  domain = Between(low, high, kind == "log", integer=whole)
  domain.check(name)
  return name, (domain, count)


def _spaced(values: Plain, count: int) -> Sequence[Value]:
  """Returns `count` different values from low to high, or all values of a list."""
  if not isinstance(values, Between):
    return values
  spaced = [values.at(i / max(1, count - 1)) for i in range(count)]
  return [value for value, _ in itertools.groupby(spaced)]
