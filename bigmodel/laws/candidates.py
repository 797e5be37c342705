"""What `--law=auto` tries: laws of the registry, generic laws of any columns, and regressions on logs and shares.

Candidates are fitted to many data sets at once: all groups of a table, and all their backtests.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from bigmodel.laws import fitting, forms, marquardt, mixture_forms, training_forms
from bigmodel.laws.law import FEW, POSITIVE, Bounds, Law, decay

Columns = Mapping[str, np.ndarray]
Predict = Callable[[Columns], np.ndarray]  # columns -> losses, or their logs, as in `Data.target`

COSTLY = ("m4", "bnsl2", "bnsl3", "bnsl0")  # slow and hardly better than others, or the same as another
STRENGTHS = tuple(10.0**k for k in range(-6, 3))  # of ridge regression, for standardized features
FIRST_SHARE = 0.01  # added to shares before their logs
SPARE = 1  # points that a fit needs beyond the number of its parameters
LATER = ", later points weighted"


@dataclasses.dataclass(frozen=True)
class Data:
  """Points of one fit. Targets are logs of losses, or with `shift` losses that may be negative.

  Laws of positive losses are fitted to `loss + shift`.
  """

  columns: Columns
  loss: np.ndarray
  shift: float | None = None

  @property
  def target(self) -> np.ndarray:
    """What predictions are compared with."""
    return np.log(self.loss) if self.shift is None else self.loss

  def __len__(self) -> int:
    return len(self.loss)

  def take(self, rows: np.ndarray) -> "Data":
    """Some of the points."""
    return Data({name: x[rows] for name, x in self.columns.items()}, self.loss[rows], self.shift)


class Candidate(Protocol):
  """Something that predicts losses from columns."""

  @property
  def name(self) -> str: ...

  @property
  def parameters(self) -> int: ...

  def fit(self, sets: Sequence[Data]) -> list["Fitted | None"]:
    """The candidate fitted to each data set; None where nothing finite fits."""
    ...


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A fitted candidate. `params` is empty for regressions."""

  predict: Predict
  params: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class OfLaw:
  """A law; `rename` has the table's column for each column of the law that has another name there."""

  law: Law
  later: bool = False  # whether points are weighted in proportion to the scale
  rename: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.law.name + (LATER if self.later else "")

  @property
  def parameters(self) -> int:
    return len(self.law.names)

  def fit(self, sets: Sequence[Data]) -> list[Fitted | None]:
    plain = sets[0].shift is not None
    rows = [(self._columns(data.columns), data.loss + (data.shift or 0.0), self._weights(data)) for data in sets]
    thetas, costs = marquardt.best(self.law, fitting.stack(rows), plain)
    return [
      self._fitted(theta, data.shift) if np.isfinite(cost) else None
      for theta, cost, data in zip(thetas, costs, sets, strict=True)
    ]

  def _columns(self, columns: Columns) -> list[np.ndarray]:
    return [columns[self.rename.get(name, name)] for name in self.law.columns]

  def _weights(self, data: Data) -> np.ndarray | None:
    if not self.later:
      return None
    (scale,) = self._columns(data.columns)
    return scale / scale.mean()

  def _fitted(self, theta: np.ndarray, shift: float | None) -> Fitted:
    def predict(columns: Columns) -> np.ndarray:
      values = fitting.predict(self.law, theta, self._columns(columns))
      with np.errstate(all="ignore"):
        return np.log(values) if shift is None else values - shift

    return Fitted(predict, {name: float(x) for name, x in zip(self.law.names, self.law.readable(theta), strict=True)})


@dataclasses.dataclass(frozen=True)
class Regression:
  """Ridge regression on features of columns; its strength has the least error of leave-one-out."""

  name: str
  features: Callable[[Columns], np.ndarray]  # [points, features]
  parameters: int = 2  # ridge regression needs no more points than this

  def fit(self, sets: Sequence[Data]) -> list[Fitted | None]:
    return [self._fit(data) for data in sets]

  def _fit(self, data: Data) -> Fitted:
    x, y = self.features(data.columns), data.target
    center, spread, mean = x.mean(axis=0), x.std(axis=0) + 1e-12, y.mean()
    u, s, v = np.linalg.svd((x - center) / spread, full_matrices=False)
    along = u.T @ (y - mean)
    errors, slopes = [], []
    for strength in STRENGTHS:
      kept = s**2 / (s**2 + strength * len(y))
      leverage = np.minimum((u**2) @ kept + 1 / len(y), 0.999)
      errors.append(np.mean(((y - mean - u @ (kept * along)) / (1 - leverage)) ** 2))
      slopes.append(v.T @ (kept * along / np.maximum(s, 1e-300)))
    slope = slopes[int(np.argmin(errors))]
    return Fitted(lambda columns: mean + ((self.features(columns) - center) / spread) @ slope, {})


def candidates(scales: Sequence[str], shares: Sequence[str], derived: Sequence[str] = ()) -> list[Candidate]:
  """Everything that can be tried with these columns: scales are positive, shares lie between 0 and 1.

  `derived` are columns that follow from others, such as C from N and D: laws may have them.
  """
  there = {*scales, *shares, *derived}
  registered = [law for module in forms.MODULES if module is not training_forms for law in forms.laws_in(module)]
  laws = [law for law in registered if set(law.columns) <= there and law.name not in COSTLY and not law.plain]
  tried: list[Candidate] = []
  if len(scales) == 1 and not shares:
    curves = [law for law in registered if law.columns == ("x",) and law.name not in COSTLY]
    rename = {"x": scales[0]}
    tried += [OfLaw(law, later, rename) for law in curves for later in (False, True)]
    laws = [law for law in laws if law.columns != ("x",)]
  tried += [OfLaw(law) for law in laws]
  if len(scales) > 1:
    tried += [OfLaw(make(tuple(scales))) for make in (additive, product, interaction)]
  if len(shares) >= mixture_forms.LEAST_SHARES:
    tried += [OfLaw(make(len(shares))) for make in mixture_forms.FAMILIES.values()]
  return tried + regressions(scales, shares)


def regressions(scales: Sequence[str], shares: Sequence[str]) -> list[Candidate]:
  """Regressions of first and second order on logs of scales, and on shares, their roots and their logs."""

  def stacked(columns: Columns, share: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    return [np.log(columns[name]) for name in scales] + [share(columns[name]) for name in shares]

  def first(columns: Columns) -> np.ndarray:
    return np.stack(stacked(columns, np.sqrt) + [columns[name] for name in shares], axis=1)

  def second(columns: Columns, share: Callable[[np.ndarray], np.ndarray] = np.sqrt) -> np.ndarray:
    each = stacked(columns, share)
    return np.stack(each + [x * y for i, x in enumerate(each) for y in each[i:]], axis=1)

  def second_of_logs(columns: Columns) -> np.ndarray:
    return second(columns, lambda share: np.log(share + FIRST_SHARE))

  tried: list[Candidate] = [Regression("log-linear", first), Regression("log-quadratic", second)]
  return tried + ([Regression("log-quadratic of log shares", second_of_logs)] if shares else [])


def _generic(name: str, columns: tuple[str, ...], value: Callable, own: bool, joint: bool) -> Law:
  """A law of columns x1, x2, ...: terms A_i x_i^-a_i if `own`, and one of all columns with exponents g_i if `joint`."""
  factors = [f"A_{x}" for x in columns] * own + ["G"] * joint
  exponents = [f"a_{x}" for x in columns] * own
  shared = [f"g_{x}" for x in columns] * joint
  bounds: dict[str, Bounds] = dict.fromkeys(["E", *factors], POSITIVE)
  bounds |= dict.fromkeys(exponents, (0.0, 3.0)) | dict.fromkeys(shared, (-1.0, 3.0))
  few = FEW if len(columns) < 4 else FEW[:1]
  grid = dict.fromkeys(exponents, few if not joint else (0.3,)) | dict.fromkeys(shared, few if not own else (0.05, 0.3))
  return Law(f"{name} in {', '.join(columns)}", "any columns", value, columns, bounds, grid, ("E", *factors))


@functools.cache
def additive(columns: tuple[str, ...]) -> Law:
  """L = E + sum_i A_i x_i^-a_i."""

  def value(p, *x):
    return p.E + sum(getattr(p, f"A_{n}") * decay(v, getattr(p, f"a_{n}")) for n, v in zip(columns, x, strict=True))

  return _generic("sum of powers", columns, value, True, False)


@functools.cache
def product(columns: tuple[str, ...]) -> Law:
  """L = E + G prod_i x_i^-g_i."""

  def value(p, *x):
    joint = p.G
    for n, v in zip(columns, x, strict=True):
      joint = joint * decay(v, getattr(p, f"g_{n}"))
    return p.E + joint

  return _generic("product of powers", columns, value, False, True)


@functools.cache
def interaction(columns: tuple[str, ...]) -> Law:
  """L = E + sum_i A_i x_i^-a_i + G prod_i x_i^-g_i."""

  def value(p, *x):
    alone, joint = p.E, p.G
    for n, v in zip(columns, x, strict=True):
      alone = alone + getattr(p, f"A_{n}") * decay(v, getattr(p, f"a_{n}"))
      joint = joint * decay(v, getattr(p, f"g_{n}"))
    return alone + joint

  return _generic("sum and product of powers", columns, value, True, True)
