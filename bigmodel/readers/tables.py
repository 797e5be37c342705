"""Reads tables that people bring: CSV and its relatives, JSON lines, Parquet and Arrow files, plain or packed.

What had to be assumed, such as a separator or an encoding, is in the notes of the table. Columns that are texts are
converted where they are used, by `cells` and `dates`, because only there it is known what they should be.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.errors import UserError
from bigmodel.readers import delimited_frames, json_tables, packed

TEXTS = (".csv", ".tsv", ".txt", ".tab", ".psv", ".dat")
JSON_LINES = (".jsonl", ".ndjson")
JSON = ".json"  # of JSON lines, too, from some tools
ARROW = (".arrow", ".feather", ".ipc")
TYPED = (".parquet", *ARROW)  # files whose columns have types
SUFFIXES = (*TEXTS, *JSON_LINES, *TYPED)
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")  # in text files, whatever a column holds
TOTALS = ("total", "totals", "sum", "grand total", "mean", "average", "gesamt", "summe", "totaal", "somme")
INDEX = "__index_level_0__"  # the name that pandas gives to an index in Parquet


@dataclasses.dataclass(frozen=True)
class TableFile:
  """A table as its file has it. `notes` are what was assumed, and `sha256` is the hash of the unpacked content."""

  path: str
  frame: pl.DataFrame
  lines: np.ndarray | None  # of the file, in which the rows begin; None: they follow each other
  first_line: int  # of the first row
  decimal: str  # the mark of decimals of the file, see `cells.file_decimal`
  notes: tuple[str, ...]
  sha256: str

  def line(self, row: int) -> int:
    """The line of the file, or the number of the row where it has no lines, counted from 1."""
    return self.first_line + row if self.lines is None else int(self.lines[row])

  def all_lines(self) -> Sequence[int] | np.ndarray:
    """`line` of all rows."""
    return range(self.first_line, self.first_line + len(self.frame)) if self.lines is None else self.lines


def read(
  path: str | os.PathLike[str],
  missing: Sequence[str] = MISSING,
  with_dates: bool = True,
  casts: pl.Expr | None = None,
  skip_bad_rows: bool = False,
) -> TableFile:
  """Reads a table. Raises `UserError` for a file that is no table or damaged.

  `missing` are texts without a value in text files. `with_dates`: their dates in the order of ISO 8601 are recognised.
  `casts` are applied while the file is read, which saves memory. `skip_bad_rows`: rows of texts with too few or too
  many cells are left out.
  """
  file, kind = Path(path).expanduser(), packed.suffix(path)
  if file.is_dir():
    raise UserError(f"{path} is a folder and not a table")
  try:
    with _unpacked(file) as (plain, sha256):
      found = _read(plain, kind, delimited_frames.Options(tuple(missing), with_dates, casts, skip_bad_rows))
  except UserError as error:
    message = str(error)
    if message.startswith(str(file)) or message.startswith(str(path)):
      raise
    mark = " " if message.startswith(("is ", "has ", "cannot ")) else ": "
    raise UserError(f"{path}{mark}{message}") from error
  except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
    raise UserError(f"{path} cannot be read: {(str(error).strip() or 'unknown').splitlines()[0]}") from error
  frame, notes = found.frame, list(found.notes)
  if frame.is_empty():
    names = ", ".join(frame.columns[:5])
    raise UserError(f"{path} has no rows below its header ({names}{', ...' if frame.width > 5 else ''})")
  lines = found.lines
  if _is_totals(frame):
    last = found.first_line + len(frame) - 1 if lines is None else int(lines[-1])
    frame, lines = frame.head(-1), None if lines is None else lines[:-1]
    notes.append(f"row {last} holds totals and is left out")
  return TableFile(str(path), frame, lines, found.first_line, found.decimal, tuple(notes), sha256)


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[tuple[Path, str]]:
  """The file, or a temporary one with its unpacked content, and the hash of that content."""
  with packed.open_bytes(file) as opened:
    if file.suffix.lower() not in packed.PACKED_SUFFIXES:
      yield file, _sha256(file)
      return
    with tempfile.NamedTemporaryFile(prefix="bigmodel-") as temporary:
      shutil.copyfileobj(opened, temporary, 1 << 20)
      temporary.flush()
      yield Path(temporary.name), _sha256(Path(temporary.name))


def _sha256(file: Path) -> str:
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(file: Path, kind: str, options: delimited_frames.Options) -> delimited_frames.Frame:
  if kind in TYPED:
    scan = pl.scan_parquet(file) if kind == ".parquet" else pl.scan_ipc(file)
    if options.casts is not None:
      scan = scan.with_columns(options.casts)
    frame = scan.collect(engine="streaming").rechunk()
    notes = []
    if INDEX in frame.columns:
      frame, notes = frame.drop(INDEX), ["the index of a pandas table is left out"]
    return delimited_frames.Frame(frame, None, 1, "", tuple(notes))
  if kind == JSON:
    _refuse_json_document(file)
  if kind in (*JSON_LINES, JSON):
    frame, lines = json_tables.read(file)
    return delimited_frames.Frame(frame, lines, 1, "", ())
  found = delimited_frames.read(file, options)
  expected = "cells are separated by tabs" if kind in (".tsv", ".tab") else ""
  return dataclasses.replace(found, notes=tuple(note for note in found.notes if note != expected))


def _refuse_json_document(file: Path) -> None:
  """Refuses a file whose JSON is not an object per line."""
  with open(file, "rb") as opened:
    begin = opened.read(1 << 16).lstrip(b"\xef\xbb\xbf \r\n\t")
  first, _, rest = begin.partition(b"\n")
  if first.startswith(b"{") and first.rstrip().endswith(b"}") and rest.strip():
    return
  if not begin.startswith((b"[", b"{")):
    raise UserError("is no JSON, although its name ends in .json; rename it if it is a table of text")
  what = "a JSON array" if begin.startswith(b"[") else "a JSON document"
  raise UserError(
    f"is {what} and not a table; write JSON lines: an object per line (with pandas: to_json(path, orient='records',"
    " lines=True))"
  )


def _is_totals(frame: pl.DataFrame) -> bool:
  """Whether the last row holds sums or means: one of its texts says so, which no other row does."""
  if len(frame) < 3:
    return False
  for name, kind in frame.schema.items():
    if kind == pl.String and (text := frame[name][-1]) is not None and text.strip(" :").lower() in TOTALS:
      return int((frame[name] == text).sum()) == 1
  return False
