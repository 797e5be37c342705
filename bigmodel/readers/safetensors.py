"""Reads safetensors files: a header of names, types and shapes in JSON, and the values of one tensor at a time.

Every size in the header is compared with the size of the file before anything of that size is allocated.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np

from bigmodel.errors import UserError
from bigmodel.readers import downloads
from bigmodel.readers.json_lines import shortened

LONGEST_HEADER = 100_000_000  # bytes, as in the format's description
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BITS = {
  **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16},
  **{"I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8},
  **{"F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file; its values are read when they are needed."""

  path: Path
  name: str
  kind: str  # of its values, as the format names it, such as BF16
  shape: tuple[int, ...]
  begin: int  # its first byte in the file

  def values(self) -> np.ndarray:
    """The values as float32, or as stored if they are float16 or float64. Raises `UserError` if they are integers."""
    if self.kind not in FLOATS:
      raise UserError(
        f"{self.path}: tensor {self.name!r} has values of type {self.kind}, as quantised weights have;"
        f" only {', '.join(FLOATS)} can be read, so use the weights before quantisation"
      )
    with open(self.path, "rb") as file:
      file.seek(self.begin)
      stored = np.fromfile(file, FLOATS[self.kind], math.prod(self.shape)).reshape(self.shape)
    return (stored.astype(np.uint32) << 16).view(np.float32) if self.kind == "BF16" else stored


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
  """The tensors of a file by name, without their values. Raises `UserError` for damaged and incomplete files."""
  path = Path(path)
  try:
    size = path.stat().st_size
    with open(path, "rb") as file:
      length = _header_length(file.read(downloads.ENOUGH), size, path)
      file.seek(8)
      header = file.read(length)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  tensors = {}
  spans = []
  for name, entry in _entries(header, path).items():
    if name == "__metadata__":
      continue
    kind, shape, begin, end = _entry(entry, f"{path} cannot be read: tensor {name!r}")
    tensors[name] = Tensor(path, name, kind, shape, 8 + length + begin)
    spans.append((begin, end, name))
  _require_whole(spans, size - 8 - length, path)
  return tensors


def _header_length(begin: bytes, size: int, path: Path) -> int:
  """The length of the header of a file with these first bytes and this size."""
  length = int.from_bytes(begin[:8], "little")
  if size < 10 or begin[8:9] != b"{" or length > LONGEST_HEADER:
    problem = downloads.mistaken(begin) or f"it begins with {begin[:16]!r}"
    raise UserError(f"{path} cannot be read: not a safetensors file: {problem}")
  if length > size - 8:
    raise UserError(
      f"{path} cannot be read: it ends inside its header ({size:,} bytes); the download is incomplete, repeat it"
    )
  return length


def _entries(header: bytes, path: Path) -> Mapping[str, object]:
  """The JSON object of a header."""

  def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
      raise ValueError("a name occurs twice")
    return entries

  try:
    entries = json.loads(header.decode(), object_pairs_hook=unique)
  except RecursionError as error:
    raise UserError(f"{path} cannot be read: its header is damaged (nested too deeply)") from error
  except ValueError as error:
    raise UserError(f"{path} cannot be read: its header is damaged ({error})") from error
  if not isinstance(entries, dict):
    raise UserError(f"{path} cannot be read: its header is no JSON object")
  return entries


def _entry(entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
  """The type, the shape, and the first and last offset of a tensor in a header; `where` begins messages."""
  if not isinstance(entry, dict):
    raise UserError(f"{where} is described by {shortened(entry)} and not by an object")
  kind, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
  if not isinstance(kind, str) or kind not in BITS:
    raise UserError(f"{where} has values of the unknown type {shortened(kind)}")
  if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
    raise UserError(f"{where} has the shape {shortened(shape)} and the offsets {shortened(offsets)}")
  if math.prod(shape) * BITS[kind] != 8 * (offsets[1] - offsets[0]):
    raise UserError(f"{where}: {kind} values of shape {shape} do not fill the bytes {offsets[0]} to {offsets[1]}")
  return kind, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: object) -> TypeGuard[list[int]]:
  return isinstance(value, list) and len(value) <= 32 and all(type(x) is int and 0 <= x < 1 << 63 for x in value)


def _require_whole(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
  """Raises `UserError` unless the tensors lie one after another and fill the `size` bytes after the header."""
  at = 0
  for begin, end, name in sorted(spans):
    if begin != at:
      what = "overlaps the one before it" if begin < at else "leaves a gap before it"
      raise UserError(f"{path} cannot be read: tensor {name!r} {what} (it begins at {begin}, not {at})")
    at = end
  if at > size:
    raise UserError(
      f"{path} cannot be read: it ends after {size:,} of {at:,} bytes of tensors; the download is incomplete, repeat it"
    )
  if at < size:
    raise UserError(f"{path} cannot be read: {size - at:,} bytes follow its last tensor; the file is damaged")
