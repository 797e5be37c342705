"""Columns of texts as numbers or dates, where they are written for people; marks of missing values."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from bigmodel.config import require
from bigmodel.readers import cells, dates

MOST = 0.9  # where more than this share of a column's texts are numbers, the other texts are bad cells
HALF = 0.5  # this share where `data.steps` has bad_cells
TRIED = 1000  # different texts by which a column of texts is recognised


@dataclasses.dataclass(frozen=True)
class Converted:
  """A column after its conversion, the number of its bad cells, and what was assumed."""

  column: pl.Series
  bad_cells: int = 0
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
  """How texts are read: the mark of decimals of the file, and whether `data.steps` has bad_cells.

  `lines` are those of the file in which the rows begin; None: the source has types, so its plain numbers that are texts
  stay texts.
  """

  decimal: str
  bad_cells: bool
  lines: Sequence[int] | np.ndarray | None

  def place(self, row: int) -> str:
    """Where a row is, for messages."""
    return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


def convert(column: pl.Series, reading: Reading) -> Converted:
  """The column of texts (missing: null, without blanks around them) as numbers or dates, where nearly all are such."""
  different = column.drop_nulls().unique(maintain_order=True)
  tried = different.head(TRIED).to_list()
  possible = sum(_may_be_converted(text) for text in tried)
  if possible > (HALF * len(tried) if len(different) > TRIED else 0):
    texts = different.to_list()
    found = _numbers(column, texts, reading) or _dates(column, texts, reading)
    if found is not None:
      return found
  return _without_marks(column)


def _may_be_converted(text: str) -> bool:
  """Whether the text is a number, perhaps with a unit such as kg, a date, or a mark of a missing value."""
  return cells.is_number(text) or cells.parse(text) is not None or dates.is_date(text) or cells.is_missing(text)


def _share_of_rows(column: pl.Series, texts: Sequence[str]) -> float:
  """The share of the cells with content that have one of these texts."""
  return float(column.is_in(texts).sum()) / max(1, column.count())


def _numbers(column: pl.Series, texts: Sequence[str], reading: Reading) -> Converted | None:
  """The column as numbers, or None; refuses bad cells unless the step bad_cells treats them as missing."""
  found = cells.numbers(texts, column.name, reading.decimal, leave_out_unit=True)
  if all(value is None for value in found.values.values()):
    return None
  marks = [text for text, value in found.values.items() if value is None]
  if reading.lines is None and not found.notes and not found.others and not marks:
    return None
  bad = _share_of_rows(column, found.others)
  if bad > 1 - (HALF if reading.bad_cells else MOST):
    return None
  _refuse_bad_cells(column, found.others, reading)
  values = column.replace_strict(found.values, default=None, return_dtype=pl.Float64)
  notes = [f"column {column.name!r}: {', '.join(found.notes)}"] if found.notes else []
  bad_texts = [*found.others, *(text for text in marks if cells.plain_number(text) is None)]
  count = int(column.is_in(bad_texts).sum()) if reading.bad_cells else 0
  return Converted(values, count, (*notes, *_notes_of_marks(column, marks)))


def _refuse_bad_cells(column: pl.Series, others: Sequence[str], reading: Reading) -> None:
  first = column.is_in(others).arg_max() or 0
  require(
    reading.bad_cells or not others,
    f"config.data.path: column {column.name!r} has {column[first]!r} among numbers, in {reading.place(first)};"
    " the step bad_cells treats such cells as missing",
  )


def _dates(column: pl.Series, texts: Sequence[str], reading: Reading) -> Converted | None:
  """The column as dates, or None."""
  found = dates.dates(texts, column.name)
  bad = _share_of_rows(column, found.others)
  if not found.note or bad > 1 - (HALF if reading.bad_cells else MOST):
    return None
  first = column.is_in(found.others).arg_max() or 0
  require(
    reading.bad_cells or not found.others,
    f"config.data.path: column {column.name!r} has {column[first]!r} among dates, in {reading.place(first)};"
    " the step bad_cells treats such cells as missing",
  )
  values = column.replace_strict(found.values, default=None, return_dtype=pl.Datetime("us"))
  marks = [text for text, value in found.values.items() if value is None]
  return Converted(
    values if found.has_times else values.cast(pl.Date),
    int(column.is_in(found.others).sum()),
    (f"column {column.name!r}: {found.note}", *_notes_of_marks(column, marks)),
  )


def classes_without_marks(column: pl.Series, classes: Sequence[str]) -> Converted:
  """The names of classes without marks of missing values, such as ?.

  A mark is a class where `classes` name it, where most cells have one, and where it is one of two classes.
  """
  others = column.filter(~column.str.to_lowercase().is_in(cells.MISSING))
  if 2 * len(others) < column.count() or others.n_unique() < 2:
    return Converted(column)
  return _without_marks(column, classes)


def _without_marks(column: pl.Series, kept_marks: Sequence[str] = ()) -> Converted:
  """The texts without marks of missing values, except `kept_marks`."""
  is_mark = column.str.to_lowercase().is_in(cells.MISSING) & ~column.is_in(list(kept_marks))
  if not is_mark.any():
    return Converted(column)
  kept = pl.select(pl.when(~is_mark).then(column)).to_series().alias(column.name)
  marks = column.filter(is_mark).unique(maintain_order=True).to_list()
  return Converted(kept, 0, tuple(_notes_of_marks(column, marks)))


def _notes_of_marks(column: pl.Series, marks: Sequence[str]) -> list[str]:
  if not marks:
    return []
  shown = ", ".join(map(repr, marks[:5]))
  return [f"column {column.name!r}: {int(column.is_in(marks).sum())} cells with {shown} are missing values"]
