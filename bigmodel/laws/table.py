"""Reads columns of a table of runs, under the names that laws have for them. Errors name the row of the file."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
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
  file = tables.read(source.path, missing=(), with_dates=False)
  numbered = file.frame.with_columns(pl.Series(ROW, file.all_lines()))
  return checked(Runs(numbered, list(file.notes)), source, file.decimal)


def checked(runs: Runs, source: Source, decimal: str = "") -> Runs:
  """The runs with numbers in the columns that the source names, as far as they exist.

  Rows without a positive number in one of these, or without a group, are refused by row and value, or left out with
  `source.skip_bad_rows`. `decimal` is the mark of decimals of the file.
  """
  frame, notes = runs.frame, list(runs.notes)
  good = np.ones(len(frame), bool)
  for name in _named(source, names(frame)):
    values, about = _numbers(frame[name], decimal)
    notes += about
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any() and not source.skip_bad_rows:
      _refuse(frame, source.path, name, wrong)
    good &= ~wrong
    frame = frame.with_columns(pl.Series(name, values))
  if source.group in names(frame):
    wrong = frame[source.group].is_null().to_numpy()
    if wrong.any() and not source.skip_bad_rows:
      _refuse(frame, source.path, source.group, wrong)
    good &= ~wrong
  if good.all():
    return Runs(frame, notes)
  if not good.any():
    raise UserError(f"{source.path}: --skip-bad-rows leaves no row: all {len(good)} miss a positive number")
  left_out = frame[ROW].filter(pl.Series(~good)).to_list()
  shown = ", ".join(map(str, left_out[:NAMED])) + (", ..." if len(left_out) > NAMED else "")
  notes.append(f"{len(left_out)} of {len(good)} rows without positive numbers are left out (row {shown})")
  return Runs(frame.filter(pl.Series(good)), notes)


def _named(source: Source, there: Sequence[str]) -> list[str]:
  """The columns of numbers that the source names; a name may be followed by a factor, as in `params*1e6`."""
  wanted = [*source.columns.values(), source.loss, source.stderr]
  found = [name if name in there else name.partition("*")[0].strip() for name in wanted]
  return [name for name in dict.fromkeys(found) if name in there]


def _numbers(column: pl.Series, decimal: str) -> tuple[np.ndarray, list[str]]:
  """The numbers of a column, float64, NaN for cells without one, and a note on how they are written."""
  if column.dtype != pl.String:
    numbers = column.cast(pl.Float64, strict=False).fill_null(float("nan"))
    return numbers.to_numpy(), []
  read = cells.numbers(column.drop_nulls().unique(maintain_order=True), column.name, decimal, leave_out_unit=False)
  values = [read.values.get(text) if text is not None else None for text in column]
  notes = [f"column {column.name!r}: {', '.join(read.notes)}"] if read.notes else []
  return np.array([np.nan if value is None else value for value in values], np.float64), notes


def _refuse(frame: pl.DataFrame, path: str, name: str, wrong: np.ndarray) -> None:
  """Refuses the first of the rows that are `wrong`."""
  at = int(wrong.argmax())
  row, value = frame[ROW][at], frame[name][at]
  problem = "no value" if value is None else f"{value!r} is not a positive number"
  hint = f"({int(wrong.sum())} such rows; --skip-bad-rows leaves them out)"
  raise UserError(f"{path}: column {name!r}, row {row}: {problem} {hint}")


def names(frame: pl.DataFrame) -> list[str]:
  """The columns of the file."""
  return [name for name in frame.columns if name != ROW]


def column(frame: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """A column of positive numbers of `Runs`; `flag` is the option that named it, for messages."""
  require_column(frame, path, name, flag)
  values, _ = _numbers(frame[name], "")
  wrong = ~(np.isfinite(values) & (values > 0))
  if wrong.any():
    _refuse(frame, path, name, wrong)
  return values


def require_column(frame: pl.DataFrame, path: str, name: str, flag: str) -> None:
  """Raises `UserError` with the columns of the table unless it has this one."""
  there = names(frame)
  if name not in there:
    raise UserError(f"{path}: no column {name!r} for {flag}{nearest(name, there)}; it has {', '.join(there)}")


def columns(
  table: pl.DataFrame, path: str, wanted: Iterable[str], column_names: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The columns that a law needs, by the law's names; of N, D and C the third follows from C = 6 N D."""
  values = {name: column(table, path, each, f"--{name.lower()}") for name, each in column_names.items()}
  if "C" not in values and {"N", "D"} <= set(values):
    values["C"] = 6 * values["N"] * values["D"]
  if "N" not in values and {"C", "D"} <= set(values):
    values["N"] = values["C"] / (6 * values["D"])
  if "D" not in values and {"C", "N"} <= set(values):
    values["D"] = values["C"] / (6 * values["N"])
  missing = [name for name in wanted if name not in values]
  if missing:
    raise UserError(
      f"{path}: which column is {' and '.join(missing)}? --{missing[0].lower()}=COLUMN, or --column {missing[0]}=COLUMN"
    )
  return values


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


def warnings(columns: Sequence[np.ndarray], loss: np.ndarray, rows: Sequence[int]) -> list[str]:
  """Properties of points that make a fit to them doubtful; `rows` are those of the file."""
  messages: list[str] = []
  places: dict[tuple[float, ...], list[int]] = {}
  for place, scales in enumerate(zip(*columns, strict=True)):
    places.setdefault(tuple(map(float, scales)), []).append(place)
  repeated = [each for each in places.values() if len(each) > 1 and np.ptp(loss[each]) > 0]
  if repeated:
    first, second, *_ = repeated[0]
    messages.append(
      f"rows {rows[first]} and {rows[second]} have the same scales and losses of {loss[first]:.5g} and"
      f" {loss[second]:.5g} ({len(repeated)} such sets): the difference is treated as noise"
    )
  scale = np.sum([np.log(x) for x in columns], axis=0)
  if len(loss) > 2 and np.corrcoef(scale, np.log(loss))[0, 1] > 0:
    messages.append("the loss rises with scale, so no law that falls with scale will fit")
  return messages


def groups(frame: pl.DataFrame, path: str, name: str) -> dict[str, pl.DataFrame]:
  """The parts of the table by the values of the column `name`, or the whole table as "" if `name` is empty."""
  if not name:
    return {"": frame}
  require_column(frame, path, name, "--group")
  parts = frame.partition_by(name, maintain_order=True, as_dict=True)
  return {str(key[0]): part for key, part in parts.items()}
