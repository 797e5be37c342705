"""Prepared data on disk: folders that are written atomically, and arrays that are mapped into memory.

The operating system reads the parts of a mapped array that are used and drops them again when it needs memory, so
arrays may be many times larger than the memory.
"""

import contextlib
import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

CHUNK_BYTES = 64 << 20  # the size of the pieces in which large arrays are processed


class GrowingArray:
  """An .npy file to which `append` adds rows of one shape and type. It is a context manager, which completes it."""

  def __init__(self, path: Path, dtype: np.typing.DTypeLike, row_shape: tuple[int, ...] = ()):
    self.rows = 0
    self._path, self._dtype, self._row_shape = path, np.dtype(dtype), row_shape

  def __enter__(self) -> Self:
    self._file = open(self._path, "wb")
    self._write_header()
    return self

  def append(self, rows: np.ndarray) -> None:
    """Adds rows: [rows, *row_shape]."""
    assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
    self._file.write(np.ascontiguousarray(rows, self._dtype).data)
    self.rows += len(rows)

  def __exit__(self, *error: object) -> None:
    self._file.seek(0)
    self._write_header()  # has the length of the first one, because NumPy leaves space in it for any number of rows
    self._file.close()

  def _write_header(self) -> None:
    description = np.lib.format.dtype_to_descr(self._dtype)
    facts = {"descr": description, "fortran_order": False, "shape": (self.rows, *self._row_shape)}
    np.lib.format.write_array_header_1_0(self._file, facts)


def open_array(path: Path) -> np.ndarray:
  """The array of an .npy file, mapped into memory."""
  return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """A temporary folder that is renamed to `folder` at the end of the block, or removed if the block raises."""
  temporary = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
  temporary.mkdir(parents=True)
  try:
    yield temporary
    temporary.rename(folder)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def chunks(rows: int, row_values: int) -> Iterator[slice]:
  """Slices of rows, in order, each with at most `CHUNK_BYTES` as float64 and at most 4,096 rows, but at least one."""
  size = max(1, min(4096, CHUNK_BYTES // (8 * max(1, row_values))))
  return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def chunks_of(array: np.ndarray) -> Iterator[slice]:
  """The slices of `chunks` for the rows of an array."""
  return chunks(len(array), math.prod(array.shape[1:]))


def row_identity(row: np.ndarray) -> int:
  """A hash of 64 bits of the values of one row, such as an image."""
  return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=8).digest(), "little")


def array_sha256(array: np.ndarray) -> str:
  """The hash of the type, the shape and the values of an array."""
  digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
  for rows in chunks_of(array):
    digest.update(np.ascontiguousarray(array[rows]).view(np.uint8).data)
  return digest.hexdigest()
