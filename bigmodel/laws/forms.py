"""Laws: the usual parametric forms, and how one writes another.

A law is a JAX function of named, bounded parameters and of columns:

    @law("mine", "its paper", grid={"alpha": (0.2, 0.5)}, linear=("E", "A"), E=POSITIVE, A=POSITIVE, alpha=(0, 3))
    def mine(p, N):
      return p.E + p.A * decay(N, p.alpha)

Its columns are the function's other arguments. A fit starts from every point of `grid`; parameters in
`linear`, in which the law is linear, need no starts: they are solved for. `bigmodel fit --law=FILE.py:mine`
takes such a function from a file.
"""

import dataclasses
import functools
import importlib.util
import inspect
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.config import nearest
from bigmodel.errors import UserError

Bounds = tuple[float, float]
POSITIVE: Bounds = (0.0, math.inf)
REAL: Bounds = (-math.inf, math.inf)
EDGE = 1e-3  # of an interval: starts at its ends begin so far inside


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
  """A form of loss; `value(p, *columns)` has positive values unless `plain`, whose residuals are no logs."""

  name: str
  source: str
  value: Callable[..., Any]
  columns: tuple[str, ...]
  bounds: dict[str, Bounds]
  grid: dict[str, tuple[float, ...]]
  linear: tuple[str, ...] = ()
  plain: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self.bounds)

  def predict(self, theta: Any, columns: Any) -> Any:
    """Values at `columns`, in the order of `self.columns`, for unbounded parameters `theta`."""
    return self.value(SimpleNamespace(**dict(zip(self.bounds, self.readable(theta), strict=True))), *columns)

  def readable(self, theta: Any) -> list[Any]:
    """Parameters within their bounds, from the last axis of `theta`."""
    return [_bounded(theta[..., i], bounds) for i, bounds in enumerate(self.bounds.values())]

  def theta(self, params: dict[str, Any]) -> np.ndarray:
    """Unbounded parameters from readable ones; arrays broadcast."""
    columns = [_unbounded(np.asarray(params[name], np.float64), bounds) for name, bounds in self.bounds.items()]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)

  def starts(self, columns: Any = ()) -> np.ndarray:
    """Every point of the grid [S, P]; linear parameters are 1, to be solved for.

    Of laws of x a shift `g` starts at multiples of 1 / x, and breaks `d` at distances from ln x, of the largest x.
    """
    nonlinear = [name for name in self.bounds if name not in self.linear]
    points = np.array(list(itertools.product(*(self.grid[name] for name in nonlinear))), np.float64)
    values = dict(zip(nonlinear, points.T, strict=True)) | dict.fromkeys(self.linear, 1.0)
    largest = np.max(columns[0]) if self.columns == ("x",) and len(columns) else 1.0
    for name in nonlinear:
      if name == "g":
        values[name] = values[name] / largest
      elif re.fullmatch(r"d\d", name):
        values[name] = values[name] + np.log(largest)
    return np.atleast_2d(self.theta(values))


def _bounded(t: Any, bounds: Bounds) -> Any:
  low, high = bounds
  if math.isinf(low) and math.isinf(high):
    return t
  xp = jnp if isinstance(t, jax.Array) else np
  if math.isinf(high):
    return low + xp.exp(t)
  return low + (high - low) / (1 + xp.exp(-t))


def _unbounded(value: np.ndarray, bounds: Bounds) -> np.ndarray:
  low, high = bounds
  if math.isinf(low) and math.isinf(high):
    return value
  if math.isinf(high):
    return np.log(value - low)
  share = np.clip((value - low) / (high - low), EDGE, 1 - EDGE)
  return np.log(share) - np.log1p(-share)


LAWS: dict[str, Law] = {}


def law(
  name: str,
  source: str,
  *,
  grid: dict[str, tuple[float, ...]],
  linear: tuple[str, ...] = (),
  plain: bool = False,
  **bounds: Bounds,
) -> Callable[[Callable[..., Any]], Law]:
  """Makes a law of a function of parameters and columns, and knows it by its name."""

  def make(value: Callable[..., Any]) -> Law:
    columns = tuple(inspect.signature(value).parameters)[1:]
    lacking = sorted(set(bounds) - set(linear) - set(grid))
    if lacking:
      raise UserError(f"law {name}: grid has no start for {', '.join(lacking)}")
    others = [one for one in linear if bounds.get(one) != POSITIVE]
    if others:
      raise UserError(f"law {name}: linear parameters have the bounds POSITIVE; {', '.join(others)} has not")
    LAWS[name] = Law(name, source, value, columns, bounds, grid, linear, plain)
    return LAWS[name]

  return make


def find(name: str, where: str = "--law") -> Law:
  """A law by its name, or from a user's file as FILE.py:NAME; `where` begins messages."""
  path, colon, wanted = name.rpartition(":")
  if colon:
    if not Path(path).is_file():
      raise UserError(f"{where}: no file {path!r}")
    in_file = _laws_in(str(Path(path).resolve()), Path(path).read_text())
    for law in in_file:
      if wanted in (law.name, law.value.__name__):
        return law
    raise UserError(
      f"{where}: {path} makes no law {wanted!r}; it makes {', '.join(law.name for law in in_file) or 'none'}"
    )
  if name not in LAWS:
    raise UserError(f"{where}: no law {name!r}{nearest(name, LAWS)}; known: {', '.join(LAWS)}")
  return LAWS[name]


def absolute(name: str) -> str:
  """The name of a law as it can be found from any folder."""
  path, colon, wanted = name.rpartition(":")
  return f"{Path(path).resolve()}:{wanted}" if colon else name


@functools.cache
def _laws_in(path: str, text: str) -> list[Law]:
  """The laws that a file with this text makes: the same objects each time, so that programs compiled for them serve.

  They do not enter `LAWS`, where they could replace laws of the same name.
  """
  spec = importlib.util.spec_from_file_location(Path(path).stem, path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  ours = dict(LAWS)
  try:
    spec.loader.exec_module(module)
  finally:
    LAWS.clear()
    LAWS.update(ours)
  return [x for x in vars(module).values() if isinstance(x, Law)]


def decay(x: Any, exponent: Any) -> Any:
  """x^-exponent, by logs of x that a compiler takes once."""
  return jnp.exp(-exponent * jnp.log(x))


EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2)
FEW = (0.1, 0.3, 0.6)

# ---- curves: loss against one scale x


@law("power", "Hestness et al. 2017", grid={"c": EXPONENTS}, linear=("b",), b=POSITIVE, c=(-1, 5))
def power(p, x):
  return p.b * decay(x, p.c)


@law(
  "power_offset",
  "Hestness et al. 2017; M2 of Alabdulmohsin et al. 2022",
  grid={"c": EXPONENTS},
  linear=("a", "b"),
  a=POSITIVE,
  b=POSITIVE,
  c=(0, 5),
)
def power_offset(p, x):
  return p.a + p.b * decay(x, p.c)


@law(
  "power_shifted",
  "M3 of Alabdulmohsin et al. 2022",
  linear=("b",),
  b=POSITIVE,
  c=(0, 5),
  g=POSITIVE,
  grid={"c": FEW, "g": (1.0, 0.1, 0.01, 1e-3, 1e-4)},
)
def power_shifted(p, x):
  return p.b * jnp.exp(p.c * jnp.log(1 / x + p.g))


@law(
  "m4",
  "M4 of Alabdulmohsin et al. 2022",
  a=POSITIVE,
  span=POSITIVE,
  b=POSITIVE,
  c=(0, 5),
  alpha=(0, 10),
  grid={
    "a": (1e-3, 0.3),
    "span": (1.0, 3.0),
    "b": (1e1, 1e3, 1e5),
    "c": (0.2, 0.5),
    "alpha": (0.2, 1.0),
  },
)
def m4(p, x):
  """(L - a) / (a + span - L)^alpha = b x^-c, solved for L."""
  right = jnp.log(p.b) - p.c * jnp.log(x) - (1 - p.alpha) * jnp.log(p.span)

  # L = a + span * sigmoid(s); log of both sides is monotone in s.
  def newton(s, alpha, right):
    miss = -jax.nn.softplus(-s) + alpha * jax.nn.softplus(s) - right
    return s - miss / (jax.nn.sigmoid(-s) + alpha * jax.nn.sigmoid(s))

  fixed = [jax.lax.stop_gradient(v) for v in (p.alpha, right)]
  s = jnp.clip(fixed[1], -30, 30)
  s = jax.lax.fori_loop(0, 12, lambda _, s: jnp.clip(newton(s, *fixed), -60, 60), s)
  s = newton(newton(s, p.alpha, right), p.alpha, right)  # derivatives of the solution, to second order
  return p.a + p.span * jax.nn.sigmoid(s)


def _broken(p, x, breaks: int):
  value = jnp.log(p.b) - p.c0 * jnp.log(x)
  for i in range(1, breaks + 1):
    c, d, f = (getattr(p, f"{name}{i}") for name in ("c", "d", "f"))
    value -= c * f * jax.nn.softplus((jnp.log(x) - d) / f)
  return p.a + jnp.exp(value)


def _bnsl(breaks: int) -> None:
  """Broken neural scaling laws (Caballero et al. 2023, equation 1); d is the log of where a break is, f its width."""
  bounds: dict[str, Any] = {"a": POSITIVE, "b": POSITIVE, "c0": (-1, 5)}
  grid: dict[str, tuple[float, ...]] = {"c0": (0.0, 0.1, 0.4)}
  for i in range(1, breaks + 1):
    bounds |= {f"c{i}": (-5, 5), f"d{i}": REAL, f"f{i}": (0.05, 20)}
    places = (-9.0, -7.0, -5.0, -3.0, -1.0) if breaks == 1 else ((-7.0,), (-4.0,), (-1.5,))[i - 1]
    grid |= {f"c{i}": (0.2, 0.6), f"d{i}": places, f"f{i}": (0.5, 2.0)}
  law(f"bnsl{breaks}", "Caballero et al. 2023", grid=grid, linear=("a", "b"), **bounds)(
    lambda p, x: _broken(p, x, breaks)
  )


for _breaks in range(4):
  _bnsl(_breaks)

# ---- loss against parameters N and tokens D


@law(
  "chinchilla",
  "Hoffmann et al. 2022, equation 2",
  linear=("A", "B", "E"),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": EXPONENTS, "beta": EXPONENTS},
)
def chinchilla(p, N, D):
  return p.E + p.A * decay(N, p.alpha) + p.B * decay(D, p.beta)


@law(
  "kaplan_n",
  "Kaplan et al. 2020, equation 1.1",
  grid={"Nc": (1e8, 1e11, 1e14), "alpha": (0.05, 0.1, 0.3)},
  Nc=POSITIVE,
  alpha=(0, 3),
)
def kaplan_n(p, N):
  return decay(N / p.Nc, p.alpha)


@law(
  "kaplan_nd",
  "Kaplan et al. 2020, equation 1.5",
  Nc=POSITIVE,
  Dc=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"Nc": (1e8, 1e11, 1e14), "Dc": (1e9, 1e12, 1e15), "alpha": (0.05, 0.1, 0.3), "beta": (0.05, 0.1, 0.3)},
)
def kaplan_nd(p, N, D):
  return jnp.exp(p.beta * jnp.logaddexp(-p.alpha / p.beta * jnp.log(N / p.Nc), -jnp.log(D / p.Dc)))


@law(
  "kaplan_nc",
  "Kaplan et al. 2020, equation 1.6, with steps in proportion to C / N",
  linear=("A", "B"),
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": EXPONENTS, "beta": EXPONENTS},
)
def kaplan_nc(p, N, C):
  return p.A * decay(N, p.alpha) + p.B * decay(C / N, p.beta)


@law(
  "overtraining",
  "Gadre et al. 2024, equation 4",
  linear=("E", "a", "b"),
  E=POSITIVE,
  a=POSITIVE,
  b=POSITIVE,
  eta=(0, 3),
  grid={"eta": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)},
)
def overtraining(p, N, D):
  """L = E + (a M^eta + b M^-eta) C^-eta with M = D / N tokens a parameter and C = 6 N D."""
  C, M = 6 * N * D, D / N
  return p.E + p.a * decay(C / M, p.eta) + p.b * decay(C * M, p.eta)


@law(
  "data_constrained",
  "Muennighoff et al. 2023, equations 5 and 6",
  linear=("E",),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  rd=POSITIVE,
  rn=POSITIVE,
  grid={"A": (30.0, 500.0), "B": (100.0, 2000.0), "alpha": (0.2, 0.4), "beta": (0.2, 0.4), "rd": (10.0,), "rn": (4.0,)},
)
def data_constrained(p, N, D, U):
  """U unique tokens: repeats are worth less and less, and so are parameters beyond those that are best for U."""
  repeats = jnp.maximum(D / jnp.minimum(U, D) - 1, 0)
  unique = jnp.minimum(U, D)
  effective = unique * (1 + p.rd * -jnp.expm1(-repeats / p.rd))
  # The compute-optimal N for U tokens under this very law.
  best = jnp.exp((jnp.log(p.alpha * p.A) - jnp.log(p.beta * p.B) + p.beta * jnp.log(unique)) / p.alpha)
  base = jnp.minimum(best, N)
  excess = jnp.maximum(N / base - 1, 0)
  size = base * (1 + p.rn * -jnp.expm1(-excess / p.rn))
  return p.E + p.A * decay(size, p.alpha) + p.B * decay(effective, p.beta)


@law(
  "routed",
  "Clark et al. 2022, equations 8 and 9",
  a=REAL,
  b=REAL,
  c=REAL,
  d=REAL,
  start=(1, 100),
  limit=(10, 1e4),
  grid={"a": (-0.08,), "b": (-0.1,), "c": (0.01,), "d": (1.1,), "start": (1.5, 4.0), "limit": (100.0, 500.0)},
)
def routed(p, N, E):
  """log10 L = a log10 N + b log10 F + c log10 N log10 F + d, with F(E) of E experts between `start` and `limit`."""
  n, f = jnp.log10(N), jnp.log10(saturating(E, p.start, p.limit))
  return 10 ** (p.a * n + p.b * f + p.c * n * f + p.d)


def saturating(E: Any, start: Any, limit: Any) -> Any:
  """Effective experts: 1 / F = 1 / (E - 1 + 1 / (1 / start - 1 / limit)) + 1 / limit."""
  return 1 / (1 / (E - 1 + 1 / (1 / start - 1 / limit)) + 1 / limit)


# ---- settings, and losses through a link


@law(
  "learning_rate",
  "a power law in N and D, as in Porian et al. 2024 and Bjorck et al. 2024",
  linear=("k",),
  k=POSITIVE,
  n=REAL,
  d=REAL,
  grid={"n": (-0.5, -0.1, 0.3), "d": (-0.5, -0.1, 0.3)},
)
def learning_rate(p, N, D):
  """The best learning rate; the same form serves the best batch size."""
  return p.k * decay(N, -p.n) * decay(D, -p.d)


@law(
  "critical_batch",
  "McCandlish et al. 2018, equation 2.11",
  linear=("least", "product"),
  least=POSITIVE,
  product=POSITIVE,
  grid={},
)
def critical_batch(p, B):
  """Steps to a loss with batches of B: least (1 + critical / B); product = least x critical."""
  return p.least + p.product / B


@law(
  "link",
  "Bhagia et al. 2024, step 2",
  plain=True,
  low=(0, 1),
  span=(0, 1),
  middle=REAL,
  slope=POSITIVE,
  grid={"low": (0.05, 0.25, 0.5), "span": (0.3, 0.7), "middle": (0.5, 1.0, 2.0, 3.0), "slope": (1.0, 4.0)},
)
def link(p, L):
  """Accuracy from a loss: it falls by a sigmoid from low + span to low, which is chance."""
  return p.low + p.span * jax.nn.sigmoid(-p.slope * (L - p.middle))
