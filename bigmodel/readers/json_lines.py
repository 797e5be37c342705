"""Reads JSON lines: a JSON object per line, plain or packed; errors name the file and the line."""

import contextlib
import difflib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from bigmodel.errors import UserError
from bigmodel.readers import plain_text
from bigmodel.readers.packed import open_bytes

FIELDS = 20  # names of fields in a message
JOINED = "write its texts as one field, for example with jq"


def rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
  """`(number, object)` of each line that is not blank, counted from 1.

  Only `\\n` ends a line: JSON strings may contain the other characters that end lines in Unicode.
  """
  with open_bytes(path) as file:
    for number in itertools.count(1):
      text = _line(file, f"{path}, line {number}", "utf-8-sig" if number == 1 else "utf-8")
      if text is None:
        return
      if text and not text.isspace():
        row = _row(text, f"{path}, line {number}")
        del text  # a long line and its object need not both be kept while the object is used
        yield number, row


def _line(file: BinaryIO, where: str, encoding: str) -> str | None:
  """The next line, or None at the end of the file."""
  line = file.readline()
  try:
    return line.decode(encoding) if line else None
  except UnicodeDecodeError as error:
    hint = "convert it with iconv -f UTF-16 -t UTF-8" if b"\0" in line[:100] else plain_text.CONVERT
    raise UserError(f"{where}: {plain_text.reason(error)}; {hint}") from error


def _row(text: str, where: str) -> Mapping[str, object]:
  """The object of a line."""
  try:
    row = json.loads(text)
  except RecursionError as error:
    raise UserError(f"{where}: JSON that is nested too deeply") from error
  except ValueError as error:
    raise UserError(f"{where}: not JSON: {error}{_hint(text)}") from error
  if not isinstance(row, dict):
    raise UserError(f"{where}: not a JSON object but {shortened(row)}{_hint(text)}")
  return row


def _hint(text: str) -> str:
  """What to do about a line that is no JSON object."""
  text = text.strip()
  if text[0] == "[":
    return "; a JSON array is written as one object per line, for example with jq -c '.[]'"
  if text in ("{", "}"):
    return "; an object has to be written on a single line, for example with jq -c ."
  return "; lines have to end in \\n, and these end in \\r" if "\r" in text else ""


def value(row: Mapping[str, object], key: str, where: str) -> object:
  """The value of a field; `a.b` is the field `b` of the object `a`, unless the row has a field of that whole name.

  Where `a` is null, so is `a.b`.
  """
  if key in row:
    return row[key]
  at: object = row
  for part in key.split("."):
    if not isinstance(at, dict) or part not in at:
      if at is None:
        return None  # the object that would have the field is null
      if isinstance(at, list):
        raise UserError(f"{where}: no field {key!r}: before {part!r} is a list, and lists have no fields; {JOINED}")
      raise UserError(f"{where}: no field {key!r}{_fields(key, at if isinstance(at, dict) else row)}")
    at = at[part]
  return at


def _fields(key: str, row: Mapping[str, object]) -> str:
  """The fields of a row, for the message that `key` is missing."""
  names = [str(name) for name in itertools.islice(row, FIELDS)]
  shown = [name[:40] if name[:40].isprintable() else repr(name[:40]) for name in names]
  more = f" and {len(row) - FIELDS} more" if len(row) > FIELDS else ""
  return f"{_nearest(key, shown)}; it has {', '.join(shown) or 'none'}{more}"


def _nearest(key: str, names: list[str]) -> str:
  """' (did you mean X?)' for a name that only differs in its case or in a letter or two; else ''."""
  in_lower_case = {name.lower(): name for name in names}
  close = difflib.get_close_matches(key.lower(), list(in_lower_case), n=1, cutoff=0.8)
  return f" (did you mean {in_lower_case[close[0]]!r}?)" if close else ""


def longest_text(row: Mapping[str, object]) -> str:
  """The field with the longest text as `value` takes it, such as a.b; "" without any."""
  found, left = [(0, "")], [("", row)]
  while left:
    prefix, at = left.pop()
    for name, inside in at.items():
      if isinstance(inside, str):
        found.append((len(inside), f"{prefix}{name}"))
      elif isinstance(inside, dict):
        left.append((f"{prefix}{name}.", inside))
  return max(found)[1]


def text(of: object, key: str, where: str) -> str:
  """The value `of` the field `key`, which must be a text; halves of surrogate pairs are replaced by U+FFFD."""
  if not isinstance(of, str):
    raise UserError(f"{where}: the field {key!r} is not a text but {shortened(of)}")
  return without_surrogates(of)


def without_surrogates(string: str) -> str:
  """The text with each half of a surrogate pair, which UTF-8 cannot encode, replaced by U+FFFD."""
  if string.isascii():
    return string
  try:
    string.encode()
  except UnicodeEncodeError:
    return string.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return string


def shortened(value: object) -> str:
  """A value as JSON, cut after 40 characters, for messages."""
  written = ""
  with contextlib.suppress(RecursionError):
    for part in json.JSONEncoder().iterencode(value):
      written += part[:60]
      if len(written) > 40:
        return f"{written[:40]}..."
  return written
