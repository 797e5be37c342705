"""Text files of separated cells as data frames.

Small files are read record by record, which checks all of them. Large plain ones are read by polars alone, in little
memory; files that turn out not to be plain are read record by record as well.
"""

import array
import csv
import dataclasses
import io
import itertools
import re
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.errors import UserError
from bigmodel.readers import cells, delimited

SMALL = 4 << 20  # bytes of files that are read record by record
BEGIN = 1 << 20  # bytes from which the layout of a file is found
JUDGED = 5000  # cells with points or commas by which the mark of decimals is found
FALLBACK = "cp1252"  # of texts that are not UTF-8
UNNAMED = re.compile(r"|Unnamed: ?\d+(\.\d+)?|Unnamed: \d+_level_\d+")  # pandas' names of columns without one
IN_ORDER = re.compile(r"\d{4}[-/]?\d|T?\d{1,2}:")  # dates with the year first, and times
# The beginnings of files that are no text, with what to do about them.
OTHER_FILES = {
  b"PK\x03\x04": "is an Excel workbook or a zip archive; save the sheet as CSV, or unpack the archive",
  b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save the sheet as CSV",
  b"PAR1": "is a Parquet file; let its name end in .parquet",
  b"ARROW1": "is an Arrow file; let its name end in .arrow",
  b"SQLite format 3": "is an SQLite database; export the table as CSV",
  b"%PDF": "is a PDF document; export the table as CSV",
  b"\x89PNG": "is a picture and not a table",
  b"BZh": "is packed with bzip2; unpack it, or pack it with gzip, xz or Zstandard",
  b"<!doctype html": "is an HTML page and not a table; has its download failed?",
  b"<html": "is an HTML page and not a table; has its download failed?",
  b"<?xml": "is an XML document; export the table as CSV",
}


@dataclasses.dataclass(frozen=True)
class Options:
  """How cells are read: see `tables.read`."""

  missing: tuple[str, ...]
  with_dates: bool
  casts: pl.Expr | None
  skip_bad_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
  """A table with the lines in which its rows begin (None: they follow each other), and notes; see `TableFile`."""

  frame: pl.DataFrame
  lines: np.ndarray | None
  first_line: int
  decimal: str
  notes: tuple[str, ...]


def read(file: Path, options: Options) -> Frame:
  """The table of a text file. Raises `UserError` with the line that is not part of a table."""
  with open(file, "rb") as opened:
    begin = opened.read(BEGIN)
    size = opened.seek(0, 2)
    if size <= SMALL:
      opened.seek(0)
      begin = opened.read()
  _refuse_other_files(begin)
  encoding, note = delimited.encoding_of(begin)
  try:
    return _read_as(file, begin, size, encoding, note, options)
  except UnicodeDecodeError as error:
    if encoding != delimited.UTF8:
      raise UserError(f"is no valid {encoding.upper()} ({error.reason}); is the file truncated?") from error
  line, byte = _first_byte_that_is_not_utf8(file)
  problem = f"line {line} has the byte 0x{byte:02x}, which is not UTF-8"
  refused = UserError(f"cannot be read: {problem}; save the file as UTF-8")
  if byte >= 0xFE:  # no text of Western Europe has these, but damaged files have
    raise refused
  note = f"{problem}; the file is read as Windows-1252"
  try:
    return _read_as(file, begin, size, FALLBACK, note, options)
  except UnicodeDecodeError as error:
    raise refused from error


def _refuse_other_files(begin: bytes) -> None:
  start = begin[:64].lstrip(b" \r\n\t\xef\xbb\xbf")
  for mark, message in OTHER_FILES.items():
    if start.startswith(mark) or (mark[:1] == b"<" and start.lower().startswith(mark)):
      raise UserError(message)
  if re.match(rb"\[\s*(\{\s*[\"}]|\[)", start):
    raise UserError(
      "is a JSON array and not a table of text; write JSON lines: an object per line, in a file whose name ends in"
      " .jsonl (with pandas: to_json(path, orient='records', lines=True))"
    )
  if not begin.strip(b" \r\n\t\0\xef\xbb\xbf\xff\xfe,;"):
    raise UserError("is empty" if not begin else "has no content")


def _first_byte_that_is_not_utf8(file: Path) -> tuple[int, int]:
  """The line and the value of the first byte that is not UTF-8."""
  with open(file, "rb") as opened:
    for number, line in enumerate(opened, 1):
      try:
        line.decode()
      except UnicodeDecodeError as error:
        return number, line[error.start]
  return 1, 0


def _read_as(file: Path, begin: bytes, size: int, encoding: str, note: str, options: Options) -> Frame:
  layout = delimited.layout(begin, size <= len(begin), encoding)
  marked = (cell for record in layout.sample for cell in record.cells if "." in cell or "," in cell)
  judged = list(itertools.islice(marked, JUDGED))
  decimal = cells.file_decimal(judged)
  if not decimal and layout.separator == ";" and not any("." in cell and cells.is_number(cell) for cell in judged):
    decimal = cells.UNSETTLED
  notes = [*([note] if note else []), *layout.notes]
  frame, lines = None, None
  if size > SMALL and layout.is_plain:
    frame = _read_plain(file, layout, decimal, options)
  if frame is None:
    rows = delimited.Rows(file, layout, options.skip_bad_rows)
    content, lines = _as_plain(rows, layout)
    plain = dataclasses.replace(layout, separator=",")
    frame = _typed(io.BytesIO(content), plain, decimal, options, whole=True)
    notes += rows.notes()
    assert len(frame) == len(lines)
  frame, about_names = _named(frame, layout)
  return Frame(frame, lines, layout.header + 1, decimal, (*notes, *about_names))


def _read_plain(file: Path, layout: delimited.Layout, decimal: str, options: Options) -> pl.DataFrame | None:
  """The table as polars reads it, or None if it has to be read record by record."""
  try:
    frame = _typed(file, layout, decimal, options, whole=False)
  except pl.exceptions.PolarsError:
    return None
  # Lines with too few cells, blank lines and comments are read as rows without a last cell.
  if frame.width and frame[:, -1].null_count() and not _all_have(file, layout, frame.width):
    return None
  return frame.with_columns(pl.selectors.string().str.strip_chars())


def _all_have(file: Path, layout: delimited.Layout, columns: int) -> bool:
  """Whether all records have as many cells as there are columns."""
  with delimited.open_text(file, layout.encoding) as opened:
    return all(
      len(record.cells) == columns and not record.is_blank
      for record in delimited.records(delimited.Lines(opened, ()), layout.separator)
    )


def _as_plain(rows: delimited.Rows, layout: delimited.Layout) -> tuple[bytes, np.ndarray]:
  """The rows as CSV that every reader understands, and the lines in which they begin."""
  content, lines = io.BytesIO(), array.array("q")
  with io.TextIOWrapper(content, "utf-8", errors="replace", newline="") as text:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"column {i}" for i in range(len(layout.names))])
    for record in rows:
      lines.append(record.line)
      writer.writerow(record.cells)
    text.flush()
    return content.getvalue(), np.array(lines, np.int64)


def _typed(
  source: Path | io.BytesIO, layout: delimited.Layout, decimal: str, options: Options, whole: bool
) -> pl.DataFrame:
  """The columns as polars reads them, those whose meaning is in doubt as texts. `whole`: types are from all rows."""
  names = _temporary_names(layout)

  def scan(texts: set[str], rows: int | None) -> pl.DataFrame:
    if isinstance(source, io.BytesIO):
      source.seek(0)
    frame = pl.scan_csv(
      source,
      separator=layout.separator,
      new_columns=names,
      infer_schema_length=rows,
      try_parse_dates=options.with_dates,
      low_memory=True,
      null_values=list(options.missing),
      schema_overrides=dict.fromkeys(texts, pl.String),
    )
    if options.casts is not None:
      frame = frame.with_columns(options.casts)
    return frame.collect(engine="streaming").rechunk()

  try:
    rows = None if whole else 10_000
    frame = scan(set(), rows)
  except pl.exceptions.ComputeError:  # a cell does not have the type of the first rows
    rows = None
    frame = scan(set(), rows)
  doubtful = _doubtful(frame, layout, decimal)
  return scan(doubtful, rows) if doubtful else frame


def _doubtful(frame: pl.DataFrame, layout: delimited.Layout, decimal: str) -> set[str]:
  """Columns whose points may group thousands, and dates that polars may have taken for days before months."""
  found = set()
  for i, (name, kind) in enumerate(frame.schema.items()):
    if kind.is_temporal():
      written = [record.cells[i] for record in layout.sample if len(record.cells) > i and record.cells[i]]
      if not written or not all(IN_ORDER.match(cell) or cells.is_missing(cell) for cell in written):
        found.add(name)
    elif kind.is_float() and decimal in (",", cells.UNSETTLED):
      found.add(name)
  return found


def _temporary_names(layout: delimited.Layout) -> list[str]:
  """Different names for all columns: their own, where they have one that no column before them has."""
  names: dict[str, None] = {}
  for i, name in enumerate(layout.names):
    names[name if name and name not in names else f"\0{i}"] = None
  return list(names)


def _numbers_rows(column: pl.Series, name: str, is_first: bool) -> bool:
  """Whether a column numbers the rows; some of them may have been left out later, if it is the first column.

  Years in order do not number the rows.
  """
  if not column.dtype.is_integer() or column.null_count() or column.n_unique() < len(column):
    return False
  values = np.sort(column.to_numpy())
  if (np.diff(values) == 1).all() or not (name or is_first):
    return bool(values[0] in (0, 1) and values[-1] < len(values) + 1)
  return bool(name or values[0] <= len(values))


def _named(frame: pl.DataFrame, layout: delimited.Layout) -> tuple[pl.DataFrame, list[str]]:
  """The table without columns that only number the rows or are repeated, and notes about them."""
  notes = []
  for i, (name, temporary) in enumerate(zip(layout.names, _temporary_names(layout), strict=True)):
    column = frame[temporary]
    if UNNAMED.fullmatch(name) and _numbers_rows(column, name, i == 0):
      frame = frame.drop(temporary)
      notes.append(f"column {i + 1}, which has no name and numbers the rows, is left out")
    elif not name and column.null_count() == len(column):
      frame = frame.drop(temporary)
    elif not name:
      frame = frame.rename({temporary: f"column {i + 1}"})
      notes.append(f"column {i + 1} has no name and is called 'column {i + 1}'")
    elif name != temporary:
      if not column.equals(frame[name]):
        raise UserError(f"line {layout.header}: two columns have the name {name!r}, with different cells; rename one")
      frame = frame.drop(temporary)
      notes.append(f"column {i + 1} repeats {name!r} and is left out")
  return frame, notes
