"""Arrays that are written row by row to an .npy file, and read from there without loading them."""

from pathlib import Path
from typing import Self

import numpy as np


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
