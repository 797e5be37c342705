"""Text files of separated cells (CSV and its relatives): how they are laid out, and their records with line numbers."""

import codecs
import collections
import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, cast

from bigmodel.errors import UserError
from bigmodel.readers import cells

SEPARATORS = (",", ";", "\t", "|", " ")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "blanks"}
COMMENTS = ("#", "%", "//")  # the beginnings of lines that are no rows, unless most lines begin so
SCORED = 500  # records by which a separator is judged
TITLES = 20  # records in which the names are looked for below a title
SAMPLE = 2000  # records that are kept to judge how numbers and dates are written
NAMED = 8  # lines that are left out and named
UTF8 = "utf-8-sig"
RULE = re.compile(r":?-{2,}:?")  # the cells of the line below the header of a table in Markdown
STATED = re.compile(r"\s*\"?sep=(.)\"?\s*")  # Excel's first line


@dataclasses.dataclass(frozen=True)
class Record:
  """The cells of a row, without blanks around them, and the line in which it begins."""

  line: int
  cells: list[str]

  @property
  def is_blank(self) -> bool:
    """Whether no cell has content."""
    return not any(self.cells)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a file is laid out."""

  encoding: str
  separator: str
  header: int  # the line of the names, counted from 1
  names: tuple[str, ...]  # of the columns; '' for a first column that has no name
  comments: tuple[str, ...]  # the beginnings of lines that are left out
  is_plain: bool  # nothing but names in the first line, and rows of as many cells
  sample: tuple[Record, ...]  # the first rows
  notes: tuple[str, ...]


class Lines:
  """The lines of a file for `csv.reader`, without comments, which stand only where a record could begin."""

  def __init__(self, lines: Iterable[str], comments: tuple[str, ...]) -> None:
    self._lines, self._comments = iter(lines), comments
    self.number = self.start = 0  # the last line that was read, and the line in which the record begins
    self.commented = 0
    self.begins = True  # whether the next line begins a record
    self.record: list[str] = []  # the lines of the record, for a message

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    for line in self._lines:
      self.number += 1
      if "\0" in line:
        raise UserError(f"line {self.number}: has a NUL byte; the file is damaged, or is not a text")
      if self.begins:
        if self._comments and line.lstrip().startswith(self._comments):
          self.commented += 1
          continue
        self.begins, self.start, self.record = False, self.number, []
      self.record.append(line)
      return line
    raise StopIteration


def records(lines: Lines, separator: str) -> Iterator[Record]:
  """The records of a text, blank ones too. Raises `UserError` for a quote that is not closed."""
  lines_ = (line.strip() + "\n" for line in lines) if separator == " " else lines
  reader = csv.reader(lines_, delimiter=separator, skipinitialspace=separator != "\t")
  while True:
    lines.begins = True
    try:
      found = next(reader, None)
    except csv.Error as error:
      hint = "a quotation mark is perhaps not closed" if "limit" in str(error) else str(error)
      raise UserError(f"line {lines.start}: {hint}") from error
    if found is None:
      return
    yield Record(lines.start, [cell.strip() for cell in found])
    if len(lines.record) > 1:
      _refuse_open_quote(lines, separator)


def _refuse_open_quote(lines: Lines, separator: str) -> None:
  """Refuses a record of several lines that goes on to the end of the file because its quote is not closed."""
  try:
    next(csv.reader(lines.record, delimiter=separator, skipinitialspace=True, strict=True))
  except (csv.Error, StopIteration) as error:
    if "unexpected end" in str(error):
      raise UserError(f"line {lines.start}: a quotation mark begins here that is never closed") from error


def encoding_of(begin: bytes) -> tuple[str, str]:
  """The encoding of a text that begins so, and a note where it is not UTF-8."""
  if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
    return "utf-32", "the file is UTF-32"
  if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return "utf-16", "the file is UTF-16"
  begin = begin[:4096]
  pairs = len(begin) // 2
  for encoding, letters, zeros in (("utf-16-le", begin[::2], begin[1::2]), ("utf-16-be", begin[1::2], begin[::2])):
    if pairs > 1 and zeros.count(0) > 0.6 * pairs and not letters.count(0):
      return encoding, f"the file is read as {encoding.upper()}, although it has no byte order mark"
  return UTF8, ""


def open_text(path: Path, encoding: str) -> TextIO:
  """Opens a text; line ends of any kind become one newline."""
  return cast(TextIO, io.TextIOWrapper(open(path, "rb"), encoding))


def layout(begin: bytes, is_whole: bool, encoding: str) -> Layout:
  """The layout of a file that begins with these bytes; raises `UserError` for a file without a header."""
  text = codecs.getincrementaldecoder(encoding)().decode(begin, is_whole)
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  lines = lines if is_whole or len(lines) < 2 else lines[:-1]
  stated = STATED.fullmatch(lines[0])
  skipped = 1 if stated else 0
  comments = _comments(lines[skipped:])
  if stated:
    separator = stated[1]
    found = _sample(["", *lines[1:]], separator, comments, SAMPLE)
  else:
    separator = max(SEPARATORS, key=lambda each: _score(_sample(lines, each, comments, SCORED), each))
    found = _sample(lines, separator, comments, SAMPLE)
  if not found:
    raise UserError("has no header and no rows")
  header, rows = _header(found)
  values = {mark for mark in comments if _begins_values(mark, lines[header.line :], header, rows, separator)}
  if values:
    comments = tuple(mark for mark in comments if mark not in values)
    header, rows = _header(_sample(["", *lines[1:]] if stated else lines, separator, comments, SAMPLE))
  header, rows = _header_in_comment(lines, header, rows, separator, comments)
  names = _names(header, rows)
  notes = [] if separator == "," else [f"cells are separated by {NAMES.get(separator, repr(separator))}"]
  above = [line for line in lines[skipped : header.line - 1] if line.strip()]
  if above:
    notes.append(f"the header is line {header.line}; {len(above)} line{'s' * (len(above) > 1)} above it left out")
  is_plain = (
    header.line == 1
    and encoding == UTF8
    and separator != " "
    and not comments
    and names == header.cells
    and all(len(row.cells) == len(names) for row in rows)
    and all(line.strip() for line in lines[:-1])
  )
  return Layout(encoding, separator, header.line, tuple(names), comments, is_plain, tuple(rows), tuple(notes))


def _comments(lines: Sequence[str]) -> tuple[str, ...]:
  """The beginnings of lines that are comments: those with which some lines begin, but not most of them."""
  begins = [line.lstrip()[:2] for line in lines if line.strip()]
  counts = {mark: sum(begin.startswith(mark) for begin in begins) for mark in COMMENTS}
  return tuple(mark for mark, count in counts.items() if count > 0 and (2 * count <= len(begins) or count < 2))


def _begins_values(mark: str, lines: Sequence[str], header: Record, rows: Sequence[Record], separator: str) -> bool:
  """Whether lines below the header that begin with this mark are rows, with a first cell such as #7, and no comments.

  They are if they fit the other rows, whose first cells are texts: rows of numbers with a mark are left out on purpose.
  """
  width = len(header.cells)
  kept = [row.cells for row in rows if len(row.cells) == width]
  numeric = [bool(kept) and all(_is_number_or_missing(cells_[i]) for cells_ in kept) for i in range(width)]
  marked = [line for line in lines if line.lstrip().startswith(mark)]
  if width < 2 or numeric[0] or not marked:
    return False
  for record in records(Lines((line + "\n" for line in marked if '"' not in line), ()), separator):
    fits = len(record.cells) == width and all(
      _is_number_or_missing(cell) for cell, needed in zip(record.cells, numeric, strict=True) if needed
    )
    if fits and (any(numeric) or not record.cells[0].removeprefix(mark).startswith(" ")):
      return True
  return False


def _is_number_or_missing(cell: str) -> bool:
  return cells.is_number(cell) or cells.is_missing(cell)


def _sample(lines: Sequence[str], separator: str, comments: tuple[str, ...], most: int) -> list[Record]:
  """The first records that are not blank."""
  found: list[Record] = []
  try:
    for record in records(Lines((line + "\n" for line in lines), comments), separator):
      if not record.is_blank:
        found.append(record)
      if len(found) == most:
        break
  except UserError:  # an open quote in a sample is closed later, or refused when the file is read
    pass
  return found


def _columns(found: Sequence[Record]) -> int:
  """The number of cells that most records have."""
  counts = collections.Counter(len(record.cells) for record in found)
  return max(counts, key=lambda count: (counts[count], count))


def _score(found: Sequence[Record], separator: str) -> tuple[float, int]:
  """How well a separator fits: the share of the records with equally many cells, at least two, and their number."""
  columns = _columns(found) if found else 1
  same = sum(len(record.cells) == columns for record in found)
  if separator == " " and len(found) > 2 and len(found[0].cells) == columns - 1:
    same += 1  # R writes names of rows below a header without a name for them
  if columns < 2 or (separator == " " and (same < len(found) or not _has_numbers(found[-1]))):
    return 0.0, 0
  # Blanks inside of texts are no separators where another mark is one.
  return same / len(found) - (0.5 if separator == " " else 0.0), columns


def _has_numbers(record: Record) -> bool:
  return any(cells.is_number(cell) for cell in record.cells)


def _header(found: list[Record]) -> tuple[Record, list[Record]]:
  """The record with the names, and those behind it. Lines above it have other numbers of cells."""
  columns = _columns(found)
  at = next(i for i, record in enumerate(found) if len(record.cells) == columns)
  if at > 0 and columns > 1 and _has_numbers(found[at]):
    before = found[at - 1]
    if not _has_numbers(before) and len(before.cells) < columns and (len(before.cells) > 1 or columns == 2):
      at -= 1  # the names are fewer than the cells
  if at + 1 < len(found) and _is_title(found[at], columns):
    full = next((i for i in range(at + 1, min(at + TITLES, len(found))) if not _is_title(found[i], columns)), at)
    if len(found[full].cells) == columns and all(found[full].cells) and not _has_numbers(found[full]):
      at = full
  rows = found[at + 1 :]
  if rows and all(RULE.fullmatch(cell) for cell in rows[0].cells if cell):
    rows = rows[1:]
  return found[at], rows


def _is_title(record: Record, columns: int) -> bool:
  """Whether the record is a title that a spreadsheet filled up with empty cells."""
  filled = sum(map(bool, record.cells))
  return bool(record.cells[0]) and len(record.cells) == columns > 1 and (filled == 1 or 2 * filled < columns)


def _header_in_comment(
  lines: Sequence[str], header: Record, rows: list[Record], separator: str, comments: tuple[str, ...]
) -> tuple[Record, list[Record]]:
  """The header and the rows where the names stand in a comment above rows of numbers, as NumPy writes them."""
  above = [i for i in range(header.line - 1) if comments and lines[i].lstrip().startswith(comments)]
  if not above or not _has_numbers(header):
    return header, rows
  text = lines[above[-1]].lstrip().lstrip("#%/").strip()
  names = _sample([text], separator, (), 1)
  if not names or len(names[0].cells) != len(header.cells) or _has_numbers(names[0]):
    return header, rows
  return Record(above[-1] + 1, names[0].cells), [header, *rows]


def _names(header: Record, rows: Sequence[Record]) -> list[str]:
  """The names of the columns; raises `UserError` for a header of numbers, or one that does not fit the rows."""
  names = list(header.cells)
  filled = [name for name in names if name]
  if filled and all(cells.is_number(name) for name in filled):
    raise UserError(
      f"line {header.line}: has numbers ({', '.join(filled[:3])}, ...) where the names of the columns are expected;"
      " add a line with names"
    )
  columns = _columns(rows) if rows else len(names)
  if columns > len(names):
    ends = [row.cells[len(names) :] for row in rows if len(row.cells) > len(names)]
    if not any(map(any, ends)):
      return names  # separators at the ends of rows
    first = [row.cells[0] for row in rows if len(row.cells) == columns]
    counts = _counts_up(first) or not any(cells.is_number(cell) for cell in first)
    if columns == len(names) + 1 and counts and len(set(first)) == len(first):
      return ["", *names]
    raise UserError(
      f"line {rows[0].line}: rows have {columns} cells, but the header has {len(names)} names;"
      " is there a comma inside of a number? Put such cells in quotation marks"
    )
  while (
    len(names) > 1
    and not names[-1]
    and not any(len(row.cells) >= len(names) and row.cells[len(names) - 1] for row in rows)
  ):
    names.pop()
  return names


def _counts_up(texts: Sequence[str]) -> bool:
  """Whether the texts are the numbers of rows, from 0 or 1."""
  start = 1 if texts and texts[0] == "1" else 0
  return list(texts) == [str(i) for i in range(start, start + len(texts))]


class Rows:
  """The rows of a file, each with as many cells as there are names. Counts what it leaves out.

  `skip_bad_rows`: rows with another number of cells are left out, and otherwise refused.
  """

  def __init__(self, path: Path, layout: Layout, skip_bad_rows: bool = False) -> None:
    self._path, self._layout, self._skip = path, layout, skip_bad_rows
    self.bad: list[int] = []  # the lines of rows with another number of cells
    self.blank = 0  # rows without content that other rows follow
    self.commented = 0

  def __iter__(self) -> Iterator[Record]:
    columns, ended = len(self._layout.names), 0
    with open_text(self._path, self._layout.encoding) as file:
      lines = Lines(file, self._layout.comments)
      for record in records(lines, self._layout.separator):
        self.commented = lines.commented
        if record.line <= self._layout.header or (record.line <= self._layout.header + 1 and _is_rule(record)):
          continue
        if record.is_blank:
          ended += 1
          continue
        self.blank, ended = self.blank + ended, 0
        if len(record.cells) != columns:
          try:
            _fit(record, columns)
          except UserError:
            if not self._skip:
              raise
            self.bad.append(record.line)
            continue
        yield record

  def notes(self) -> list[str]:
    """What was left out."""
    notes = []
    if self.blank:
      notes.append(f"{self.blank} blank row{'s' * (self.blank > 1)} left out")
    if self.commented:
      notes.append(f"{self.commented} comment line{'s' * (self.commented > 1)} left out")
    if self.bad:
      shown = ", ".join(map(str, self.bad[:NAMED])) + (", ..." if len(self.bad) > NAMED else "")
      lines = f"line{'s' * (len(self.bad) > 1)} {shown}"
      notes.append(f"{len(self.bad)} row{'s' * (len(self.bad) > 1)} with too few or too many cells left out ({lines})")
    return notes


def _is_rule(record: Record) -> bool:
  return not record.is_blank and all(RULE.fullmatch(cell) for cell in record.cells if cell)


def _fit(record: Record, columns: int) -> None:
  """Removes empty cells behind the last column; raises `UserError` for a row of another length."""
  if any(record.cells[columns:]) or len(record.cells) < columns:
    text = separated(record.cells)
    raise UserError(
      f"line {record.line}: {len(record.cells)} cells where the header has {columns} names ({text});"
      " correct or remove the row"
    )
  del record.cells[columns:]


def separated(row: Sequence[str]) -> str:
  """The cells of a row for a message, shortened."""
  text = ", ".join(map(repr, row[:5]))
  return text if len(text) <= 80 else f"{text[:80]}..."
