"""From the rows of a table to features and a target: cells become numbers, texts and dates, and row steps drop rows."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from bigmodel.config import Config, nearest, require
from bigmodel.data.tables.conversion import Reading, classes_without_marks, convert
from bigmodel.data.tables.steps import ROW_STEPS
from bigmodel.errors import UserError
from bigmodel.files import sha256_text

CONVERSIONS = 1  # increase it when texts are converted in another way
# Names of identifiers, and names that may be those of identifiers or of something that was measured.
IDENTIFIER = re.compile(r"(?i:(.*[ _.-])?(id|uuid|uid|guid|key)|rownames)|.*[a-z](Id|ID|Uuid|UUID)")
NUMBERING = re.compile(r"(.*[ _.-])?(idx|row|nr|no|number|#)|index|(row|line|record)[ _.-]?(index|number)", re.I)
SHOWN = 20  # names of columns in a message
ROWS = 20  # rows from which on columns are judged by the number of their values
# What cleaning did: a number of rows, or a number of rows or cells by column.
Counts = dict[str, int | dict[str, int]]


@dataclasses.dataclass(frozen=True)
class RawTable:
  """A table as its source has it, before any cleaning; `sha256` is the hash of its content.

  `decimal` is the mark of decimals of a text file, see `readers.cells`, `notes` are what was assumed when it was read,
  and `lines` those in which the rows begin (None: the source has types).
  """

  frame: pl.DataFrame
  sha256: str
  decimal: str = ""
  notes: tuple[str, ...] = ()
  lines: Sequence[int] | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows with a target; features are columns of numbers (missing: NaN), texts (missing: null) or dates."""

  features: pl.DataFrame
  target: pl.Series
  group: pl.Series | None
  time: pl.Series | None
  sha256: str
  counts: Counts  # by step, and a few facts about the rows
  notes: tuple[str, ...]  # what was assumed about the file and its cells


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
  notes = list(raw.notes)
  reading = Reading(raw.decimal, "bad_cells" in data.steps, raw.lines)
  names = {data.group} | (set() if numeric_target else {data.target})
  frame = _clean_cells(frame, data, names, counts, reading, notes)
  frame = _without_identifiers(frame, {data.target, data.group, data.time}, notes)
  for step in data.steps:
    if step in ROW_STEPS:
      before = len(frame)
      frame = ROW_STEPS[step](frame, data.target)
      counts[step] = {"rows dropped": before - len(frame)}
  require(len(frame) > 0, "config.data.steps: no row is left")
  missing = frame[data.target].is_null()
  first = missing.arg_max() or 0
  is_unchanged = len(frame) == len(raw.frame)
  place = reading.place(first) if is_unchanged else f"row {first + 1}"
  written = raw.frame[data.target][first] if is_unchanged else None
  mark = f" ({written!r}; name it in data.classes if it is a class)" if isinstance(written, str) and written else ""
  require(
    not missing.any(),
    f"config.data.target: {data.target!r} is missing in {place}{mark}; the step missing_target drops such rows",
  )
  features = frame.drop({data.target, data.group} - {""})
  require(features.width > 0, "config.data: no feature is left")
  _refuse_copy_of_target(features, frame[data.target])
  counts["duplicates found"] = len(frame) - _distinct(frame)
  group = frame[data.group] if data.group else None
  time = frame[data.time] if data.time else None
  # Tables that need no conversion keep the name that they had before there were any.
  sha256 = sha256_text(f"{raw.sha256} {CONVERSIONS}") if notes else raw.sha256
  return Table(features, frame[data.target], group, time, sha256, counts, tuple(notes))


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
  shown = ", ".join(frame.columns[:SHOWN]) + (", ..." if frame.width > SHOWN else "")
  near = nearest(name, frame.columns)
  require(exists, f"config.data.{field}: no column {name!r}{near}; the columns are {shown}")


def _clean_cells(
  frame: pl.DataFrame, data: Config, names: set[str], counts: Counts, reading: Reading, notes: list[str]
) -> pl.DataFrame:
  """The table with columns of numbers, texts, booleans or dates; adds to `counts` and `notes`.

  NaN and infinity become missing values. So do texts among numbers (bad cells), and marks of missing values. Columns
  of texts become numbers or dates where they are such, except the columns `names`.
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
    if column.dtype == pl.String and name in names and name == data.target:
      classes = classes_without_marks(column, data.classes)
      column = classes.column
      notes += classes.notes
    if column.dtype == pl.String and name not in names:
      try:
        converted = convert(column, reading)
      except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("config.") else f"config.data.path: {message}") from error
      column = converted.column
      notes += converted.notes
      if converted.bad_cells:
        bad_cells[name] = converted.bad_cells
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


def _without_identifiers(frame: pl.DataFrame, others: set[str], notes: list[str]) -> pl.DataFrame:
  """The table without texts of which each row has another. `others` are columns that are no features.

  Refuses whole numbers of which each row has another, if the name of the column is that of an identifier, or may be
  one and the numbers are those of rows.
  """
  for name, kind in frame.schema.items():
    is_identifier, may_be_one = (pattern.fullmatch(name) is not None for pattern in (IDENTIFIER, NUMBERING))
    is_named_so = kind.is_integer() and (is_identifier or may_be_one)
    if name in others or len(frame) < ROWS or not (is_named_so or kind == pl.String):
      continue
    if frame[name].n_unique() < len(frame):
      continue
    if is_named_so and not is_identifier and not _are_dense(frame[name]):
      notes.append(f"column {name!r} has another number in each row; if these are identifiers, name it in data.drop")
      continue
    require(
      not is_named_so,
      f"config.data.drop: column {name!r} has another number in each row, as identifiers have; name it there, or give"
      " it another name if its numbers have a meaning",
    )
    frame = frame.drop(name)
    notes.append(f"column {name!r} has another text in each row and is left out")
  return frame


def _are_dense(column: pl.Series) -> bool:
  """Whether whole numbers, all different, rise from row to row, or leave few numbers between them out."""
  values = column.drop_nulls().cast(pl.Float64).to_numpy()
  return bool(len(values)) and bool((np.diff(values) > 0).all() or np.ptp(values) < 2 * len(values))


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
