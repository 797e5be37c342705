"""The steps that clean a table: those that drop rows, and those that are fitted on the training rows of a column."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import polars as pl

from bigmodel.config import nearest, require

IMPUTATIONS = ("median", "mean", "zero")
# What a step learns from a column: a number or a list of numbers. It is reported in the data card.
Learned = float | list[float]


class ColumnStep(Protocol):
  """A step that changes the numbers of one column after a fit on the training rows."""

  def fit(self, x: np.ndarray, argument: str) -> Learned:
    """Learns from the training values `x`, float32[rows] with NaN where missing; `argument` is the text behind ':'."""
    ...

  def apply(self, x: np.ndarray, learned: Learned) -> np.ndarray:
    """The new values of all rows."""
    ...


def fences(x: np.ndarray, argument: str) -> list[float]:
  """Bounds beyond which a value is an outlier: `argument` interquartile ranges (3 by default) from the quartiles."""
  low, high = (float(quartile) for quartile in np.nanquantile(x, [0.25, 0.75]))
  reach = float(argument or 3) * (high - low)
  return [low - reach, high + reach]


class Impute:
  """Replaces missing numbers by the median or the mean of the column, or by zero."""

  def fit(self, x: np.ndarray, argument: str) -> float:
    if argument == "zero":
      return 0.0
    return float(np.nanmean(x) if argument == "mean" else np.nanmedian(x))

  def apply(self, x: np.ndarray, learned: Learned) -> np.ndarray:
    missing = np.isnan(x)
    return np.where(missing, learned, x) if missing.any() else x


class Clip:
  """Limits numbers to the bounds of `fences`."""

  def fit(self, x: np.ndarray, argument: str) -> list[float]:
    return fences(x, argument)

  def apply(self, x: np.ndarray, learned: Learned) -> np.ndarray:
    low, high = np.asarray(learned).tolist()
    return np.clip(x, low, high) if low < high else x


class Quantile:
  """Replaces numbers by normal scores of their ranks in the training rows."""

  def fit(self, x: np.ndarray, argument: str) -> list[float]:
    del argument
    return np.nanquantile(x, np.linspace(0, 1, 1001)).tolist()

  def apply(self, x: np.ndarray, learned: Learned) -> np.ndarray:
    from scipy.special import ndtri

    quantiles = np.asarray(learned)
    ranks = np.linspace(0, 1, len(quantiles))
    # The middle of the ranks that equal values share.
    share = (np.interp(x, quantiles, ranks) + 1 - np.interp(-x, -quantiles[::-1], ranks)) / 2
    return np.where(np.isnan(x), x, ndtri(np.clip(share, 1e-3, 1 - 1e-3)))


COLUMN_STEPS: dict[str, ColumnStep] = {"impute": Impute(), "clip": Clip(), "quantile": Quantile()}
OTHER_STEPS = ("bad_cells", "missing_flags", "drop_outliers")


def _drop_duplicates(frame: pl.DataFrame, target: str) -> pl.DataFrame:
  del target
  return frame.unique(maintain_order=True)


def _drop_missing_target(frame: pl.DataFrame, target: str) -> pl.DataFrame:
  return frame.filter(pl.col(target).is_not_null())


def _drop_missing_rows(frame: pl.DataFrame, target: str) -> pl.DataFrame:
  del target
  return frame.drop_nulls()


# name -> function of the table and the name of its target
ROW_STEPS: dict[str, Callable[[pl.DataFrame, str], pl.DataFrame]] = {
  "duplicates": _drop_duplicates,
  "missing_target": _drop_missing_target,
  "missing_rows": _drop_missing_rows,
}


def check_steps(steps: tuple[str, ...]) -> None:
  """Refuses unknown steps and arguments, and steps that drop rows after a step was fitted on these rows."""
  fitted = ""
  for step in steps:
    name, _, argument = step.partition(":")
    allowed = [*ROW_STEPS, *COLUMN_STEPS, *OTHER_STEPS]
    require(
      name in allowed, f"config.data.steps: no step {name!r}{nearest(name, allowed)}; known: {', '.join(allowed)}"
    )
    require(
      name != "impute" or argument in ("", *IMPUTATIONS),
      f"config.data.steps: {step!r}; impute with {', '.join(IMPUTATIONS)}",
    )
    has_no_argument = name in ROW_STEPS or name in ("bad_cells", "missing_flags", "quantile")
    require(not (has_no_argument and argument), f"config.data.steps: {step!r}; {name} takes no argument")
    if name in ("clip", "drop_outliers"):
      number = argument.replace(".", "", 1)
      require(not argument or number.isdigit(), f"config.data.steps: {step!r}; {name}:3 is 3 interquartile ranges")
    require(not (fitted and name in ROW_STEPS), f"config.data.steps: {name} drops rows on which {fitted} was fitted")
    fitted = name if name not in ROW_STEPS and name != "bad_cells" else fitted
