"""Reads JSON lines: a JSON object per line, plain or packed; errors name the file and the line."""

import json
import os
from collections.abc import Iterator, Mapping

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.readers.packed import open_bytes


def rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
  """`(number, object)` of each line that is not blank, counted from 1.

  Only `\\n` ends a line: JSON strings may contain the other characters that end lines in Unicode.
  """
  with open_bytes(path) as file:
    for number, line in enumerate(file, 1):
      where = f"{path}, line {number}"
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
      except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} ({error.object[error.start : error.end]!r})") from error
      if text:
        yield number, _row(text, where)


def _row(text: str, where: str) -> Mapping[str, object]:
  try:
    row = json.loads(text)
  except RecursionError as error:
    raise UserError(f"{where}: JSON that is nested too deeply") from error
  except ValueError as error:
    hint = "; a JSON array is written as one object per line" if text[0] == "[" else ""
    raise UserError(f"{where}: not JSON: {error}{hint}") from error
  if not isinstance(row, dict):
    raise UserError(f"{where}: not a JSON object but {shortened(row)}")
  return row


def value(row: Mapping[str, object], key: str, where: str) -> object:
  """The value of a field; `a.b` is the field `b` of the object `a`, unless the row has a field of that whole name."""
  if key in row:
    return row[key]
  at: object = row
  for part in key.split("."):
    if not isinstance(at, dict) or part not in at:
      fields = [str(name) for name in (at if isinstance(at, dict) else row)]
      raise UserError(f"{where}: no field {key!r}{nearest(key, fields)}; it has {', '.join(fields) or 'none'}")
    at = at[part]
  return at


def text(of: object, key: str, where: str) -> str:
  """The value `of` the field `key`, which must be a text; halves of surrogate pairs are replaced by U+FFFD."""
  if not isinstance(of, str):
    raise UserError(f"{where}: the field {key!r} is not a text but {shortened(of)}")
  return without_surrogates(of)


def without_surrogates(string: str) -> str:
  """The text with each half of a surrogate pair, which UTF-8 cannot encode, replaced by U+FFFD."""
  try:
    string.encode()
  except UnicodeEncodeError:
    return string.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return string


def shortened(value: object) -> str:
  """A value as JSON, cut after 40 characters, for messages."""
  written = json.dumps(value)
  return written if len(written) <= 40 else f"{written[:40]}..."
