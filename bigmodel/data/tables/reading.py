"""From the rows of a table to features and a target: cells become numbers, texts and dates, and row steps drop rows."""

import dataclasses

import numpy as np
import polars as pl

from bigmodel.config import Config, nearest, require
from bigmodel.data.tables.steps import ROW_STEPS

NUMBERS = 0.9  # where more than this share of a column's texts are numbers, the other texts are bad cells
# What cleaning did: a number of rows, or a number of rows or cells by column.
Counts = dict[str, int | dict[str, int]]


@dataclasses.dataclass(frozen=True)
class RawTable:
  """A table as its source has it, before any cleaning; `sha256` is the hash of its content."""

  frame: pl.DataFrame
  sha256: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows with a target; features are columns of numbers (missing: NaN), texts (missing: null) or dates."""

  features: pl.DataFrame
  target: pl.Series
  group: pl.Series | None
  time: pl.Series | None
  sha256: str
  counts: Counts  # by step, and a few facts about the rows


def read(raw: RawTable, data: Config, numeric_target: bool) -> Table:
  """The table after the steps that look at whole rows. `numeric_target`: the target is a number and not a class."""
  frame = raw.frame.with_columns(float32_features(data))
  for field in ("target", "group", "time"):
    _require_column(frame, data[field], field)
  for name in data.drop:
    _require_column(frame, name, "drop")
  require(bool(data.target), f"config.data.target: empty; the columns are {', '.join(frame.columns)}")
  frame = frame.drop(data.drop)
  counts: Counts = {"rows": len(frame)}
  frame = _clean_cells(frame, data, {data.group} | (set() if numeric_target else {data.target}), counts)
  for step in data.steps:
    if step in ROW_STEPS:
      before = len(frame)
      frame = ROW_STEPS[step](frame, data.target)
      counts[step] = {"rows dropped": before - len(frame)}
  require(len(frame) > 0, "config.data.steps: no row is left")
  missing = frame[data.target].is_null()
  require(
    not missing.any(),
    f"config.data.target: {data.target!r} is missing in row {(missing.arg_max() or 0) + 1};"
    " the step missing_target drops such rows",
  )
  features = frame.drop({data.target, data.group} - {""})
  require(features.width > 0, "config.data: no feature is left")
  _refuse_copy_of_target(features, frame[data.target])
  counts["duplicates found"] = len(frame) - _distinct(frame)
  group = frame[data.group] if data.group else None
  time = frame[data.time] if data.time else None
  return Table(features, frame[data.target], group, time, raw.sha256, counts)


def float32_features(data: Config) -> pl.Expr:
  """Casts features to float32. Times, groups and targets keep their type, because float32 would merge close values."""
  kept = {data.target, data.group, data.time} - {""}
  return (pl.selectors.float() - pl.selectors.by_name(*kept, require_all=False)).cast(pl.Float32)


def _distinct(frame: pl.DataFrame) -> int:
  """The number of different rows. Columns are hashed one by one, because polars copies whole rows to hash them."""
  hashes = np.zeros(len(frame), np.uint64)
  for seed, column in enumerate(frame):
    hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + column.hash(seed).to_numpy()
  return len(np.unique(hashes))


def _require_column(frame: pl.DataFrame, name: str, field: str) -> None:
  exists = not name or name in frame.columns
  require(exists, f"config.data.{field}: no column {name!r}{nearest(name, frame.columns)}")


def _clean_cells(frame: pl.DataFrame, data: Config, names: set[str], counts: Counts) -> pl.DataFrame:
  """The table with columns of numbers, texts, booleans or dates; adds to `counts`.

  NaN and infinity become missing values. So do texts among numbers (bad cells), except in the columns `names`.
  """
  bad_cells: dict[str, int] = {}
  infinite_cells: dict[str, int] = {}
  for name, kind in frame.schema.items():
    column = before = frame[name]
    if kind == pl.Boolean and name != data.target:
      column = column.cast(pl.Float32)
    elif kind in (pl.Categorical, pl.Enum):
      column = column.cast(pl.String)
    if column.dtype == pl.String:
      column = column.str.strip_chars()
      column = pl.select(pl.when(column != "").then(column)).to_series().alias(name)
    if column.dtype == pl.String and name not in names:
      column, bad = _numbers_among_texts(column, "bad_cells" in data.steps)
      if bad:
        bad_cells[name] = bad
    if column.dtype.is_float():
      infinite = int(column.is_infinite().sum() or 0)
      if infinite:
        infinite_cells[name] = infinite
      if infinite or column.is_nan().any():
        column = pl.select(pl.when(column.is_finite()).then(column)).to_series().alias(name)
    temporal = column.dtype.is_temporal() and column.dtype != pl.Duration
    require(
      column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean) or temporal,
      f"config.data.path: column {name!r} holds {column.dtype}, not numbers, texts or dates; name it in data.drop",
    )
    if column is not before:
      frame = frame.with_columns(column)
  if infinite_cells:
    counts["infinite"] = infinite_cells
  if bad_cells:
    counts["bad_cells"] = bad_cells
  return frame


def _numbers_among_texts(column: pl.Series, allowed: bool) -> tuple[pl.Series, int]:
  """The column as numbers where nearly all its texts are numbers, and how many were not; `allowed`: by `data.steps`."""
  numbers = column.cast(pl.Float64, strict=False)
  bad = column.is_not_null() & numbers.is_null()
  if not 0 < bad.sum() <= (1 - NUMBERS) * column.count():
    return column, 0
  first = bad.arg_max() or 0
  require(
    allowed,
    f"config.data.path: column {column.name!r} has {column[first]!r} among numbers, in row {first + 1};"
    " the step bad_cells treats such cells as missing",
  )
  return numbers, int(bad.sum())


def _refuse_copy_of_target(features: pl.DataFrame, target: pl.Series) -> None:
  """Refuses a feature that equals the target, perhaps under other names or in other units, where it is not missing."""
  for name in features.columns:
    present = features[name].is_not_null()
    column, targets = features[name].filter(present), target.filter(present)
    distinct, classes = column.n_unique(), targets.n_unique()
    if column.dtype.is_temporal() or distinct < 2 or classes < 2:
      continue
    if column.dtype.is_numeric() and targets.dtype.is_numeric() and classes > 20:
      x, y = column.cast(pl.Float64).to_numpy(), targets.cast(pl.Float64).to_numpy()
      same = abs(np.corrcoef(x, y)[0, 1]) > 1 - 1e-9
    else:
      # Where nearly every row has a value of its own, a one-to-one relation means nothing. Pairs are counted last,
      # because they take much memory for many rows.
      one_to_one = distinct == classes <= len(targets) // 2
      same = one_to_one and pl.DataFrame({"a": column, "b": targets}).n_unique() == distinct
    require(not same, f"config.data.drop: column {name!r} has the same information as the target; name it there")
