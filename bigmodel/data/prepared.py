"""Prepared data on disk: folders that are written whole or not at all, and arrays that are read without loading them.

Arrays are mapped into memory: what is looked at is read, and the operating system drops it again when it needs the
room, so arrays may be many times larger than the memory.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

CHUNK_BYTES = 64 << 20  # of an array that is gone through piece by piece


class GrowingArray:
  """An .npy file of rows of one shape and type. Within its `with`, `append` adds rows; after it the file is whole."""

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
    self._write_header()  # as long as the first one: NumPy leaves room in it for any number of rows
    self._file.close()

  def _write_header(self) -> None:
    description = np.lib.format.dtype_to_descr(self._dtype)
    facts = {"descr": description, "fortran_order": False, "shape": (self.rows, *self._row_shape)}
    np.lib.format.write_array_header_1_0(self._file, facts)


def open_array(path: Path) -> np.ndarray:
  """The array of an .npy file, mapped into memory, so that only what is looked at is read."""
  return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """Within it, a temporary folder to fill; it becomes `folder` at the end, or is removed when something is raised."""
  temporary = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
  temporary.mkdir(parents=True)
  try:
    yield temporary
    temporary.rename(folder)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def chunks(rows: int, row_values: int) -> Iterator[slice]:
  """Slices of rows, in order, of which each has at most `CHUNK_BYTES` as float64, and 4,096 rows; at least one row."""
  size = max(1, min(4096, CHUNK_BYTES // (8 * max(1, row_values))))
  return (slice(first, min(first + size, rows)) for first in range(0, rows, size))
