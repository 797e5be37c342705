"""The target and the time of a table's rows as numbers."""

import numpy as np
import polars as pl

from bigmodel.config import require


def labels(target: pl.Series, classes: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
  """Class numbers, int64[rows], and the names of the classes.

  The classes have the order of `classes` where that is given; otherwise alphabetical or numerical order.
  """
  if target.dtype.is_numeric():
    values = target.cast(pl.Float64).to_numpy()
    whole = values.astype(np.int64)
    require(bool((values == whole).all()), f"config.data.target: {target.name!r} has values that are not whole numbers")
    numbers = np.unique(whole)
    if (numbers == np.arange(len(numbers))).all() and not classes:
      return whole, tuple(map(str, numbers))
    target = pl.Series(target.name, whole.astype(str))
    present = tuple(str(number) for number in numbers)
  else:
    target = target.cast(pl.String)
    present = tuple(sorted(target.unique().to_list()))
  names = classes or present
  missing = sorted(set(present) - set(names))
  require(not missing, f"config.data.classes: {target.name!r} also has the values {missing}")
  return target.replace_strict(list(names), list(range(len(names))), return_dtype=pl.Int64).to_numpy(), names


def moments(time: pl.Series) -> np.ndarray:
  """The times of the rows, float64[rows], in units of the column's type."""
  missing = time.is_null()
  require(not missing.any(), f"config.data.time: {time.name!r} is missing in row {(missing.arg_max() or 0) + 1}")
  ordered = time.dtype.is_numeric() or time.dtype.is_temporal()
  require(ordered, f"config.data.time: {time.name!r} holds {time.dtype}, neither times nor numbers")
  return time.to_physical().cast(pl.Float64).to_numpy()
