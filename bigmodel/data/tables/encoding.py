"""Features of a table as one array of numbers; everything that is learned comes from the training rows alone."""

import dataclasses
import logging
import os

import numpy as np
import polars as pl

from bigmodel.config import Config, require
from bigmodel.data.tables.reading import Counts, Table
from bigmodel.data.tables.steps import COLUMN_STEPS, Learned, fences

OTHERS = "other"  # the category of texts that training rows have too rarely, or not at all
OTHER_STEP = "texts taken for other"  # the name of their count in the data card
MUCH = 0.1  # a warning appears where more than this share of the rows of a split is `other`
DAY = 86_400e6  # in microseconds
log = logging.getLogger("bigmodel")


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Features as one array, with what was learned from the training rows to make it."""

  inputs: np.ndarray  # float32[rows, F]: numbers first, then texts
  names: list[str]
  numbers: int  # the number of numeric features, which come first and are normalised later
  categories: tuple[int, ...]  # for encode=codes: the number of values of each other feature
  learned: dict[str, object]  # by step, for the data card
  counts: Counts
  keep: np.ndarray  # bool[rows]: False for outliers, which are not trained on
  constant: list[str]  # columns with one value in all training rows
  other: dict[str, dict[str, int]]  # by column of texts: the number of categories, and the counts of `other`


@dataclasses.dataclass
class _Fitted:
  """The state of the steps while they are applied one after another."""

  numbers: dict[str, np.ndarray]
  keep: np.ndarray
  learned: dict[str, object]
  counts: Counts


def encode(table: Table, train: np.ndarray, heldout: np.ndarray, data: Config, encoding: str) -> Encoded:
  """The features as numbers, with steps fitted on the rows of `train`. A row may be in neither mask, bool[rows]."""
  numbers, texts = _numbers_and_texts(table.features)
  for name, column in {**numbers, **texts}.items():
    empty = np.isnan(column[train]).all() if isinstance(column, np.ndarray) else (column.filter(train) == "").all()
    require(not empty, f"config.data.drop: column {name!r} is missing in all training rows; name it there")
  fitted = _Fitted(numbers, np.ones(len(train), bool), {}, {})
  for step in data.steps:
    _apply(step, fitted, train)
  for name, x in numbers.items():
    missing = np.isnan(x)
    require(
      not missing.any(),
      f"config.data.steps: column {name!r} is missing in row {int(missing.argmax()) + 1}; impute fills in numbers",
    )
  train = train & fitted.keep
  columns, sizes, categories, other = list(numbers.items()), [], {}, {}
  for name, column in texts.items():
    in_training = column.filter(pl.Series(train))
    values = _categories(in_training, data.categories or data.max_categories, data.min_category_rows)
    categories[name] = values
    codes = column.replace_strict(values, list(range(1, len(values) + 1)), default=0, return_dtype=pl.Int32).to_numpy()
    other[name] = {
      "categories": len(values),
      "texts in training": in_training.n_unique(),
      "training rows": int((codes[train] == 0).sum()),
      "held-out rows": int((codes[heldout] == 0).sum()),
    }
    if encoding == "codes":
      columns.append((name, codes))
      sizes.append(len(values) + 1)
    else:
      columns += [(f"{name}={v}", codes == i) for i, v in enumerate([OTHERS, *values])]
  if texts:
    fitted.learned["categories"] = categories
  counted = {name: facts["training rows"] + facts["held-out rows"] for name, facts in other.items()}
  fitted.counts[OTHER_STEP] = {name: rows for name, rows in counted.items() if rows}
  _warn_of_other(other, int(train.sum()), int(heldout.sum()))
  names = [name for name, _ in columns]
  inputs = _stacked([x for _, x in columns], len(train))
  constant = [name for name, x in numbers.items() if (x[train] == x[train][:1]).all()]
  constant += [name for name, facts in other.items() if facts["texts in training"] == 1]
  return Encoded(inputs, names, len(numbers), tuple(sizes), fitted.learned, fitted.counts, fitted.keep, constant, other)


def _apply(step: str, fitted: _Fitted, train: np.ndarray) -> None:
  """Fits one step on the training rows that are kept, and applies it in place; row steps were applied before."""
  name, _, argument = step.partition(":")
  numbers, rows = fitted.numbers, train & fitted.keep
  if name in COLUMN_STEPS:
    learned: dict[str, Learned] = {}
    changed: dict[str, int] = {}
    for column, x in numbers.items():
      learned[column] = COLUMN_STEPS[name].fit(x[rows], argument)
      new = COLUMN_STEPS[name].apply(x, learned[column]).astype(np.float32, copy=False)
      numbers[column] = new
      cells = int((~((new == x) | (np.isnan(new) & np.isnan(x)))).sum())
      if cells and name != "quantile":
        changed[column] = cells
    fitted.learned[step], fitted.counts[step] = learned, changed
  elif name == "missing_flags":
    flags = {f"{n} missing": np.isnan(x) for n, x in numbers.items() if np.isnan(x[rows]).any()}
    fitted.learned[step] = sorted(flags)
    numbers |= {n: x.astype(np.float32) for n, x in flags.items()}
  elif name == "drop_outliers":
    far, bounds = np.zeros(len(train), bool), {}
    for column, x in numbers.items():
      low, high = fences(x[rows], argument)
      if low < high:
        far |= (x < low) | (x > high)
        bounds[column] = [low, high]
    if bounds:
      fitted.learned[step] = bounds
    fitted.counts[step] = {"training rows dropped": int((far & rows).sum())}
    fitted.keep &= ~far


def _warn_of_other(other: dict[str, dict[str, int]], training: int, heldout: int) -> None:
  for name, facts in other.items():
    if facts["training rows"] > MUCH * training or facts["held-out rows"] > MUCH * heldout:
      log.warning(
        "config.data: column %r: %d of %d training rows and %d of %d held-out rows have texts without a category of"
        " their own; it has %d categories of %d different texts (see categories and min_category_rows)",
        *(name, facts["training rows"], training, facts["held-out rows"], heldout),
        *(facts["categories"], facts["texts in training"]),
      )


def _stacked(columns: list[np.ndarray], rows: int) -> np.ndarray:
  """The columns as float32[rows, columns]; refuses an array that this machine's memory cannot hold."""
  size, memory = 4 * rows * len(columns), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  require(
    size <= memory,
    f"config.data.max_categories: {rows} rows of {len(columns)} features are {size / 1e9:.1f} GB, more than the"
    f" {memory / 1e9:.1f} GB of this machine; lower it, or use encode=codes",
  )
  inputs = np.empty((rows, len(columns)), np.float32)
  for i, column in enumerate(columns):
    inputs[:, i] = column
  return inputs


def _numbers_and_texts(features: pl.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, pl.Series]]:
  """Columns of numbers, with those that dates become, and columns of texts, where missing is the empty text."""
  numbers, texts = {}, {}
  for name in features.columns:
    column = features[name]
    if column.dtype == pl.String:
      texts[name] = column.fill_null("")
    elif column.dtype.is_temporal():
      numbers |= {f"{name} {part}": x for part, x in _of_date(column).items()}
    else:
      numbers[name] = column.cast(pl.Float32).fill_null(float("nan")).to_numpy()
  return numbers, texts


def _of_date(column: pl.Series) -> dict[str, np.ndarray]:
  """Numbers of a date or time: days since 2000, and sines and cosines of its place in the year, week and day."""
  moment = column.cast(pl.Datetime("us")) if column.dtype != pl.Time else column
  if moment.dtype == pl.Time:
    day = moment.cast(pl.Int64).cast(pl.Float64).to_numpy() / 1e3 / DAY
    return _circle("day", day)
  microseconds = moment.to_physical().cast(pl.Float64).fill_null(float("nan")).to_numpy()
  days = microseconds / DAY - 10_957  # 2000-01-01
  parts = {"days": days.astype(np.float32), **_circle("year", days / 365.2425), **_circle("week", days / 7)}
  return parts if column.dtype == pl.Date else parts | _circle("day", days)


def _circle(name: str, turns: np.ndarray) -> dict[str, np.ndarray]:
  angle = 2 * np.pi * turns
  return {f"{name} sin": np.sin(angle).astype(np.float32), f"{name} cos": np.cos(angle).astype(np.float32)}


def _categories(column: pl.Series, most: int, least: int) -> list[str]:
  """In alphabetical order, the texts that at least `least` rows have; only the `most` frequent of these."""
  counts = column.alias("text").value_counts(sort=False).filter(pl.col("count") >= least)
  return sorted(counts.sort(["count", "text"], descending=[True, False])["text"].head(most).to_list())
