"""Reads texts from files in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; plain or packed.

Lines of any length take little memory: a text is read in blocks, and long lines are cut.
"""

import codecs
import contextlib
import functools
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from bigmodel.errors import UserError
from bigmodel.readers.packed import PACKED_SUFFIXES, open_bytes

BLOCK = 1 << 20  # characters that are read at once
PIECE = 1 << 16  # a text is cut at the first line end after so many characters
LONGEST = 1 << 20  # characters of the longest piece; a longer line is cut at a blank, or where it has none anywhere
MARKS = {  # UTF-32's little-endian mark begins with that of UTF-16
  codecs.BOM_UTF32_LE: "utf-32",
  codecs.BOM_UTF32_BE: "utf-32",
  codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}
BINARY = {  # the beginnings of files that people name .txt
  b"%PDF-": "a PDF document",
  b"{\\rtf": "an RTF document",
  b"PK\x03\x04": "a zip archive, such as a .docx document",
  b"\xd0\xcf\x11\xe0": "an old Office document",
  b"\x89PNG": "a picture",
  b"\xff\xd8\xff": "a picture",
  b"BZh": "a bzip2 file",
  b"PAR1": "a Parquet file",
}
CONTROLS = bytes({*range(1, 32)} - {*b"\t\n\v\f\r\x08\x1a\x1b"})  # control characters that texts do not have
CHECKED = 1 << 12  # bytes at either end in which NUL bytes are counted
NULS = 0.1  # a larger share of NUL bytes is UTF-16 without a mark, a binary file, or a download that never ended
CONVERT = "convert it, for example with iconv -f LATIN1 -t UTF-8"


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[TextIO]:
  """Opens a text without its byte order mark; line ends of any kind become one `\\n`. Python files may have errors.

  Raises `UserError` for files that cannot be read, have another encoding or are not text.
  """
  path = Path(path)
  try:
    with open_bytes(path) as file:
      encoding, errors = _encoding(path, file), "strict"
      if path.suffix == ".py":
        encoding, errors = "utf-8", "replace"  # some Python files declare another encoding
      with io.TextIOWrapper(file, encoding, errors) as text:
        yield cast(TextIO, text)
  except UnicodeError as error:
    raise UserError(f"{path}: {reason(error)}; {CONVERT}") from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def reason(error: UnicodeError) -> str:
  """Why bytes are not text, with the bytes."""
  if isinstance(error, UnicodeDecodeError):
    name = "UTF-8" if error.encoding == "utf-8" else error.encoding.upper()
    return f"not {name}: {error.reason} ({error.object[error.start : min(error.end, error.start + 8)]!r})"
  return f"not text: {error}"


def _encoding(path: Path, file: BinaryIO) -> str:
  """The encoding of a file by its first bytes. Raises `UserError` for many NUL bytes at either end."""
  begin = cast(io.BufferedReader, file).peek(CHECKED)[:CHECKED]
  for mark, encoding in MARKS.items():
    if begin.startswith(mark):
      return encoding
  _refuse_binary(path, begin)
  _refuse_nuls(path, begin, "first")
  if path.suffix.lower() not in PACKED_SUFFIXES and len(begin) == CHECKED:
    file.seek(-CHECKED, os.SEEK_END)
    end = file.read(CHECKED)
    file.seek(0)
    _refuse_nuls(path, end, "last")
  return "utf-8-sig"


def _refuse_binary(path: Path, begin: bytes) -> None:
  """Refuses what begins as a file of another format does, or has many control characters."""
  found = next((name for mark, name in BINARY.items() if begin.startswith(mark)), "")
  if found:
    raise UserError(f"{path}: {found} and not text; convert it to text, or leave it out")
  controls = len(begin) - len(begin.translate(None, CONTROLS))
  if controls > NULS * len(begin):
    raise UserError(
      f"{path}: {controls:,} of its first {len(begin):,} bytes are control characters: a binary file and not text;"
      " leave it out"
    )


def _refuse_nuls(path: Path, block: bytes, which: str) -> None:
  nuls = block.count(0)
  if nuls > NULS * len(block):
    raise UserError(
      f"{path}: {nuls:,} of its {which} {len(block):,} bytes are NUL: UTF-16 without a byte order mark (convert it with"
      " iconv -f UTF-16LE -t UTF-8), a binary file, or an incomplete download"
    )


def blocks(path: str | os.PathLike[str]) -> Iterator[str]:
  """The text of a file in blocks, which end anywhere."""
  with opened(path) as file:
    yield from iter(functools.partial(file.read, BLOCK), "")


def lines(path: str | os.PathLike[str]) -> Iterator[str]:
  """The lines of a file, with their ends. Lines longer than `LONGEST` are cut as `pieces` does."""
  with opened(path) as file:
    readline = functools.partial(file.readline, LONGEST)
    for line in iter(readline, ""):
      if len(line) < LONGEST:
        yield line
      else:
        yield from pieces(itertools.chain([line], _rest(line, readline)))


def _rest(line: str, readline: functools.partial[str]) -> Iterator[str]:
  """The other parts of a line that has begun."""
  while line and not line.endswith("\n"):
    line = readline()
    yield line


def pieces(text: Iterable[str]) -> Iterator[str]:
  """A text, given in blocks that end anywhere, as pieces that end at the first line end after `PIECE` characters.

  Where a line ends only after more than `LONGEST` characters, pieces end at `PIECE`, before the last blank if there is
  one.
  """
  left = ""
  for block in text:
    left, start = left + block, 0
    while end := _end(left, start):
      yield left[start:end]
      start = end
    left = left[start:]
  if left:
    yield left


def _end(text: str, start: int) -> int:
  """Where the piece that begins at `start` ends, or 0 if that depends on more text."""
  end = text.find("\n", start + PIECE - 1, start + LONGEST) + 1
  if end or len(text) - start < LONGEST:
    return end
  blank = max(text.rfind(" ", start + 1, start + PIECE), text.rfind("\t", start + 1, start + PIECE))
  return blank if blank > 0 else start + PIECE
