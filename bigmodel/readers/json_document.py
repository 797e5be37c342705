"""Reads a file that holds one JSON object, as other programs write and people download it."""

import codecs
import json
import os
from collections.abc import Mapping
from pathlib import Path

from bigmodel.errors import UserError
from bigmodel.readers import downloads
from bigmodel.readers.json_lines import shortened

LARGEST = 1 << 28  # bytes
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: str | os.PathLike[str]) -> Mapping[str, object]:
  """The object in a file: UTF-8 with or without a byte order mark, or UTF-16 with one."""
  return parse(content(path), path)


def content(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a file. Raises `UserError` for files that are too large to be a JSON document or cannot be read."""
  try:
    size = Path(path).stat().st_size
    if size > LARGEST:
      raise UserError(f"{path}: {size:,} bytes are too many for a JSON document")
    return Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def parse(document: bytes, path: str | os.PathLike[str]) -> Mapping[str, object]:
  """The object in the content of the file `path`."""
  problem = downloads.mistaken(document[: downloads.ENOUGH])
  if problem:
    raise UserError(f"{path}: not JSON: {problem}")
  try:
    value = json.loads(decoded(document, path))
  except RecursionError as error:
    raise UserError(f"{path}: JSON that is nested too deeply") from error
  except ValueError as error:
    raise UserError(f"{path}: not JSON: {error}; it begins with {document[:40]!r}") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: not a JSON object but {shortened(value)}")
  return value


def decoded(document: bytes, path: str | os.PathLike[str]) -> str:
  """The text of the file `path`: UTF-8 with or without a byte order mark, or UTF-16 with one."""
  try:
    return document.decode("utf-16" if document.startswith(UTF_16) else "utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start:,}") from error
