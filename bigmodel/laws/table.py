"""Reads columns of a table of runs, under the names that laws have for them. Errors name the row of the file."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import mixture_forms, units
from bigmodel.laws.source import Source
from bigmodel.readers import cells, tables

ROW = "\0row"  # a column with each row's number in the file, for messages about a part of the table
NAMED = 8  # rows that are left out and named


@dataclasses.dataclass(frozen=True)
class Runs:
  """A table of runs with the column `ROW`; the columns that laws need hold numbers. `notes`: what was assumed."""

  frame: pl.DataFrame
  notes: list[str]


def read(source: Source) -> Runs:
  """The runs of a file. Raises `UserError` for a file that is not readable, and for bad rows; see `checked`."""
  file = tables.read(source.path, missing=(), with_dates=False, skip_bad_rows=source.skip_bad_rows)
  numbered = file.frame.with_columns(pl.Series(ROW, file.all_lines()))
  return checked(Runs(numbered, list(file.notes)), source, file.decimal)


def checked(runs: Runs, source: Source, decimal: str = "") -> Runs:
  """The runs with numbers in the columns that the source names, as far as they exist.

  Rows without a positive number in one of these, or without a group, are refused by row and value, or left out with
  `source.skip_bad_rows`. `decimal` is the mark of decimals of the file.
  """
  frame, notes = runs.frame, list(runs.notes)
  good = np.ones(len(frame), bool)
  for column_ in _named(source, names(frame)):
    try:
      values, about = numbers(frame[column_.name], decimal)
    except UserError as error:
      raise UserError(f"{source.path}: {error}") from error
    notes += about
    wrong, wanted = _wrong(column_, column_.values(values), source, names(frame))
    if (values < 0).all() and column_ == units.parse(source.loss, names(frame)) and not source.signed:
      raise UserError(
        f"{source.path}: column {column_.name!r} is negative in all rows; --loss={column_.name}*-1 negates it"
      )
    if wrong.any() and not source.skip_bad_rows:
      _refuse(frame, source.path, column_, wrong, wanted)
    good &= ~wrong
    frame = frame.with_columns(pl.Series(column_.name, values))
  if source.group in names(frame):
    wrong = frame[source.group].is_null().to_numpy()
    if wrong.any() and not source.skip_bad_rows:
      _refuse(frame, source.path, units.Column(source.group), wrong)
    good &= ~wrong
  if good.all():
    return Runs(frame, notes)
  if not good.any():
    raise UserError(f"{source.path}: --skip-bad-rows leaves no row: all {len(good)} miss a positive number")
  left_out = frame[ROW].filter(pl.Series(~good)).to_list()
  shown = ", ".join(map(str, left_out[:NAMED])) + (", ..." if len(left_out) > NAMED else "")
  notes.append(f"{len(left_out)} of {len(good)} rows without positive numbers are left out (row {shown})")
  return Runs(frame.filter(pl.Series(good)), notes)


def _named(source: Source, there: Sequence[str]) -> list[units.Column]:
  """The columns of numbers that the source names, with their conversions."""
  wanted = [*source.columns.values(), source.loss, source.stderr]
  found = [units.parse(text, there) for text in dict.fromkeys(wanted)]
  return [column_ for column_ in found if column_.name in there]


def numbers(column: pl.Series, decimal: str) -> tuple[np.ndarray, list[str]]:
  """The numbers of a column, float64, NaN for cells without one, and a note on how they are written."""
  if column.dtype in (pl.Categorical, pl.Enum):
    column = column.cast(pl.String)
  if column.dtype != pl.String:
    if not column.dtype.is_numeric() and column.dtype != pl.Null:
      raise UserError(f"column {column.name!r} holds {_kind(column.dtype)} and not numbers")
    return column.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy(), []
  read = cells.numbers(column.drop_nulls().unique(maintain_order=True), column.name, decimal, leave_out_unit=False)
  values = [read.values.get(text) if text is not None else None for text in column]
  notes = [f"column {column.name!r}: {', '.join(read.notes)}"] if read.notes else []
  return np.array([np.nan if value is None else value for value in values], np.float64), notes


def _kind(dtype: pl.DataType) -> str:
  """The kind of the values of a column in plain words."""
  kinds: tuple[tuple[type[pl.DataType], str], ...] = (
    (pl.Boolean, "true and false"),
    (pl.Date, "dates"),
    (pl.Datetime, "dates with times"),
    (pl.Time, "times of the day"),
    (pl.Duration, "durations"),
    (pl.List, "lists"),
    (pl.Array, "lists"),
    (pl.Struct, "records of several fields"),
    (pl.Binary, "bytes"),
  )
  return next((words for kind, words in kinds if dtype == kind), f"values of the type {dtype}")


def _wrong(column_: units.Column, values: np.ndarray, source: Source, there: Sequence[str]) -> tuple[np.ndarray, str]:
  """Mask of values that a column of the source may not have, and what it may have."""
  shares = [text for name, text in source.columns.items() if mixture_forms.is_share(name)]
  if column_ in [units.parse(text, there) for text in shares]:
    percent = f"; of percent, {column_.name}/100 makes shares" if not column_.converted and values.max() > 1 else ""
    return ~((values >= 0) & (values <= 1)), f"a share between 0 and 1{percent}"
  if source.signed and column_ == units.parse(source.loss, there):
    return ~np.isfinite(values), "a number"
  return _bad(values), "a positive number"


def _bad(values: np.ndarray) -> np.ndarray:
  """Mask of values that are not positive numbers."""
  return ~(np.isfinite(values) & (values > 0))


def _refuse(
  frame: pl.DataFrame, path: str, column_: units.Column, wrong: np.ndarray, wanted: str = "a positive number"
) -> None:
  """Refuses the first of the rows that are `wrong`."""
  at = int(wrong.argmax())
  row, value = frame[ROW][at], frame[column_.name][at]
  after = " after its conversion" if column_.converted else ""
  problem = "no value" if value is None else f"{value!r} is not {wanted}{after}"
  if isinstance(value, str) and (parts := cells.parse(value)) and parts.unit not in cells.UNITS:
    problem = f"{value!r} has the unit {parts.unit}; write numbers without it"
  hint = f"({int(wrong.sum())} such rows; --skip-bad-rows leaves them out)"
  raise UserError(f"{path}: column {column_.name!r}, row {row}: {problem} {hint}")


def names(frame: pl.DataFrame) -> list[str]:
  """The columns of the file."""
  return [name for name in frame.columns if name != ROW]


def column(frame: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """A column of positive numbers of `Runs`, converted as `name` asks; `flag` is its option, for messages."""
  column_, values = _column(frame, path, name, flag)
  wrong = _bad(values)
  if wrong.any():
    _refuse(frame, path, column_, wrong)
  return values


def signed_column(frame: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """As `column`, for columns that may be 0 or negative; `checked` has refused other values."""
  return _column(frame, path, name, flag)[1]


def _column(frame: pl.DataFrame, path: str, name: str, flag: str) -> tuple[units.Column, np.ndarray]:
  column_ = units.parse(name, names(frame), flag)
  require_column(frame, path, column_.name, flag)
  return column_, column_.values(numbers(frame[column_.name], "")[0])


def require_column(frame: pl.DataFrame, path: str, name: str, flag: str) -> None:
  """Raises `UserError` with the columns of the table unless it has this one."""
  there = names(frame)
  if name not in there:
    raise UserError(f"{path}: no column {name!r} for {flag}{nearest(name, there)}; it has {', '.join(there)}")


def columns(
  table: pl.DataFrame, path: str, wanted: Iterable[str], column_names: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The columns that a law needs, by the law's names; of N, D and C the third follows from C = 6 N D.

  Raises `UserError` where that is too large or too small for a number of 64 bits.
  """
  values: dict[str, np.ndarray] = {}
  for name, each in column_names.items():
    read_column = signed_column if mixture_forms.is_share(name) else column
    values[name] = read_column(table, path, each, f"--{name.lower()}" if name in "NDCx" else f"--column {name}")
  with np.errstate(over="ignore", under="ignore"):
    if "C" not in values and {"N", "D"} <= set(values):
      values["C"] = 6 * values["N"] * values["D"]
    if "N" not in values and {"C", "D"} <= set(values):
      values["N"] = values["C"] / (6 * values["D"])
    if "D" not in values and {"C", "N"} <= set(values):
      values["D"] = values["C"] / (6 * values["N"])
  _refuse_overflow(table, path, column_names, values)
  missing = [name for name in wanted if name not in values]
  if missing:
    raise UserError(
      f"{path}: which column is {' and '.join(missing)}? --{missing[0].lower()}=COLUMN, or --column {missing[0]}=COLUMN"
    )
  return values


def _refuse_overflow(
  table: pl.DataFrame, path: str, column_names: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> None:
  """Refuses rows whose third of N, D and C, which follows from the others, is infinite or 0."""
  for name in ("N", "D", "C"):
    if name not in values or name in column_names:
      continue
    wrong = _bad(values[name])
    if wrong.any():
      at = int(wrong.argmax())
      given = " and ".join(f"{other} = {values[other][at]:g}" for other in "NDC" if other in column_names)
      raise UserError(
        f"{path}: row {table[ROW][at]}: {name} from C = 6 N D is {values[name][at]:g} with {given}; correct the row"
      )


def losses(table: pl.DataFrame, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
  """`(losses, weights)` of the rows; weights follow from standard errors, and are None without them."""
  loss = column(table, source.path, source.loss, "--loss")
  if not source.stderr:
    return loss, None
  return loss, weights(loss, column(table, source.path, source.stderr, "--stderr"))


def weights(loss: np.ndarray, stderr: np.ndarray) -> np.ndarray:
  """Weights of points in a fit, with a mean of 1: the inverse variances of the logs of the losses."""
  inverse = (loss / stderr) ** 2
  return inverse / inverse.mean()


def groups(frame: pl.DataFrame, path: str, name: str) -> dict[str, pl.DataFrame]:
  """The parts of the table by the values of the column `name`, or the whole table as "" if `name` is empty."""
  if not name:
    return {"": frame}
  require_column(frame, path, name, "--group")
  parts = frame.partition_by(name, maintain_order=True, as_dict=True)
  return {str(key[0]): part for key, part in parts.items()}
