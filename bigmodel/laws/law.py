"""What a law is: a JAX function of named, bounded parameters and of columns, made into a `Law` by the decorator `law`.

    @law("mine", "its paper", grid={"alpha": (0.2, 0.5)}, linear=("E", "A"), E=POSITIVE, A=POSITIVE, alpha=(0, 3))
    def mine(p, N):
      return p.E + p.A * decay(N, p.alpha)

The columns are the function's other arguments: N is parameters, D tokens, C FLOPs, x the only scale of a curve. A fit
starts from every point of `grid`. Parameters in which the law is linear are named in `linear` and need no starts: they
are solved for. Such a function in a user's file is named FILE.py:mine wherever a law is named.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bigmodel.errors import UserError

Array = TypeVar("Array", np.ndarray, jax.Array)
Bounds = tuple[float, float]
Value = Callable[..., jax.Array]  # (parameters, *columns) -> losses
# (points of the grid by parameter, the largest value of each column) -> starts of one parameter
Rescale = Callable[[Mapping[str, np.ndarray], Mapping[str, float]], np.ndarray]

POSITIVE: Bounds = (0.0, math.inf)
REAL: Bounds = (-math.inf, math.inf)
EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2)  # starts of exponents
FEW = (0.15, 0.4, 0.8)  # starts of exponents of laws with three of them
EDGE = 1e-3  # starts at an end of an interval begin this share of its length inside


@dataclasses.dataclass(frozen=True)
class Unit:
  """A column that is fitted in units of its largest value, because the parameters depend too much on its unit.

  `convert(parameters, largest value)` has the parameters that are others for the column as it is.
  """

  column: str
  convert: Callable[[Mapping[str, np.ndarray], np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
  """A form of loss: `value(p, *columns)` of parameters `p` that lie within `bounds`.

  Its values are positive, and residuals are differences of logs, unless `plain`. `rescale` says how the starts of a
  parameter follow from the grid and the largest values of the columns, so that a fit does not depend on their units.
  `rows` are the starts of all parameters in `grid` [S, parameters of the grid] in place of its product.
  """

  name: str
  source: str
  value: Value
  columns: tuple[str, ...]
  bounds: dict[str, Bounds]
  grid: dict[str, tuple[float, ...]]
  linear: tuple[str, ...] = ()
  plain: bool = False
  rescale: Mapping[str, Rescale] = dataclasses.field(default_factory=dict)
  unit: Unit | None = None
  rows: np.ndarray | None = None

  @property
  def names(self) -> tuple[str, ...]:
    """The parameters, in the order of the last axis of `theta`."""
    return tuple(self.bounds)

  def predict(self, theta: jax.Array, columns: Sequence[ArrayLike]) -> jax.Array:
    """Values at `columns`, in the order of `self.columns`, for unbounded parameters `theta` [P]."""
    parameters = SimpleNamespace(**dict(zip(self.bounds, self.readable(theta), strict=True)))
    return self.value(parameters, *columns)

  def readable(self, theta: Array) -> list[Array]:
    """Parameters within their bounds, from the last axis of the unbounded `theta`."""
    return [_bounded(theta[..., i], bounds) for i, bounds in enumerate(self.bounds.values())]

  def theta(self, params: Mapping[str, float | np.ndarray]) -> np.ndarray:
    """Unbounded parameters from those within bounds; arrays broadcast."""
    columns = [_unbounded(np.asarray(params[name], np.float64), bounds) for name, bounds in self.bounds.items()]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)

  def starts(self, columns: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Unbounded parameters at every point of the grid [S, P], with 1 for linear ones, which are solved for later.

    `columns` are those of the points, whose largest values `rescale` takes (1 without points).
    """
    nonlinear = [name for name in self.bounds if name not in self.linear]
    if self.rows is None:
      points = np.array(list(itertools.product(*(self.grid[name] for name in nonlinear))), np.float64)
    else:
      points = self.rows
    values: dict[str, np.ndarray] = dict(zip(nonlinear, points.T, strict=True))
    ends = [float(np.max(column)) for column in columns] if len(columns) else [1.0] * len(self.columns)
    largest = dict(zip(self.columns, ends, strict=True))
    values |= {name: rescale(values, largest) for name, rescale in self.rescale.items()}
    return np.atleast_2d(self.theta(values | dict.fromkeys(self.linear, 1.0)))


def law(
  name: str,
  source: str,
  *,
  grid: dict[str, tuple[float, ...]],
  linear: tuple[str, ...] = (),
  plain: bool = False,
  rescale: Mapping[str, Rescale] | None = None,
  unit: Unit | None = None,
  **bounds: Bounds,
) -> Callable[[Value], Law]:
  """Makes a `Law` of the decorated function. `bounds` has each parameter's interval; for the rest see `Law`."""

  def make(value: Value) -> Law:
    columns = tuple(inspect.signature(value).parameters)[1:]
    missing = sorted(set(bounds) - set(linear) - set(grid))
    if missing:
      raise UserError(f"law {name}: grid has no start for {', '.join(missing)}")
    others = [parameter for parameter in linear if bounds.get(parameter) != POSITIVE]
    if others:
      raise UserError(f"law {name}: linear parameters have the bounds POSITIVE; {', '.join(others)} has not")
    return Law(name, source, value, columns, bounds, grid, linear, plain, rescale or {}, unit)

  return make


def in_units_of(parameter: str, column: str) -> Rescale:
  """Starts of a parameter that has the unit of a column: its grid has multiples of the column's largest value."""

  def rescale(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
    return grid[parameter] * largest[column]

  return rescale


def at_largest(parameter: str, column: str, exponent: str) -> Rescale:
  """Starts of A in A column^-exponent: its grid has values of this term at the column's largest value."""

  def rescale(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
    return grid[parameter] * largest[column] ** grid[exponent]

  return rescale


def decay(x: ArrayLike, exponent: ArrayLike) -> jax.Array:
  """x^-exponent, computed from log(x), which the compiler takes once for several exponents."""
  return jnp.exp(jnp.negative(exponent) * jnp.log(x))


def _bounded(t: Array, bounds: Bounds) -> Array:
  low, high = bounds
  if math.isinf(low) and math.isinf(high):
    return t
  exp = cast(Callable[[Array], Array], jnp.exp if isinstance(t, jax.Array) else np.exp)
  if math.isinf(high):
    return low + exp(t)
  return low + (high - low) / (1 + exp(-t))


def _unbounded(value: np.ndarray, bounds: Bounds) -> np.ndarray:
  low, high = bounds
  if math.isinf(low) and math.isinf(high):
    return value
  if math.isinf(high):
    return np.log(value - low)
  share = np.clip((value - low) / (high - low), EDGE, 1 - EDGE)
  return np.log(share) - np.log1p(-share)
