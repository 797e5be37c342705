"""Columns of a CSV for laws, under the names that laws have for them; what is wrong is named by row."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError

ROW = "\0row"  # of the file, for messages; whatever part of the table is looked at


def read(path: str) -> pl.DataFrame:
  try:
    return pl.read_csv(path, infer_schema_length=10_000).with_row_index(ROW, offset=2)
  except Exception as error:
    raise UserError(f"{path}: not a readable CSV ({str(error).strip().splitlines()[0]})") from error


def names(table: pl.DataFrame) -> list[str]:
  return [name for name in table.columns if name != ROW]


def column(table: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """A column of positive numbers."""
  own = names(table)
  if name not in own:
    raise UserError(f"{path}: no column {name!r} for {flag}{nearest(name, own)}; it has {', '.join(own)}")
  values = table[name].cast(pl.Float64, strict=False).to_numpy()
  wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
  if len(wrong):
    row, value = table[ROW][int(wrong[0])], table[name][int(wrong[0])]
    raise UserError(f"{path}: column {name!r}, row {row}: {value!r} is not a positive number ({len(wrong)} such rows)")
  return values


def columns(table: pl.DataFrame, path: str, wanted: Iterable[str], named: dict[str, str]) -> dict[str, np.ndarray]:
  """The columns that a law wants; of N, D and C the third follows from C = 6 N D."""
  found = {name: column(table, path, own, f"--{name.lower()}") for name, own in named.items()}
  for name, others, value in (
    ("C", "ND", lambda: 6 * found["N"] * found["D"]),
    ("N", "CD", lambda: found["C"] / (6 * found["D"])),
    ("D", "CN", lambda: found["C"] / (6 * found["N"])),
  ):
    if name not in found and all(other in found for other in others):
      found[name] = value()
  lacking = [name for name in wanted if name not in found]
  if lacking:
    raise UserError(
      f"{path}: which column is {' and '.join(lacking)}? --{lacking[0].lower()}=COLUMN, or --column {lacking[0]}=COLUMN"
    )
  return found


def weights(loss: np.ndarray, stderr: np.ndarray) -> np.ndarray:
  """Of points in a fit, with a mean of 1: inverse variances of their logs."""
  found = (loss / stderr) ** 2
  return found / found.mean()


def warnings(known: Sequence[np.ndarray], loss: np.ndarray, places: Sequence[int]) -> list[str]:
  """What a reader should know of points before believing a fit to them; `places` are their rows of the file."""
  said: list[str] = []
  keys: dict[tuple[float, ...], list[int]] = {}
  for row, key in enumerate(zip(*known, strict=True)):
    keys.setdefault(tuple(map(float, key)), []).append(row)
  differ = [rows for rows in keys.values() if len(rows) > 1 and np.ptp(loss[rows]) > 0]
  if differ:
    rows = differ[0]
    said.append(
      f"rows {places[rows[0]]} and {places[rows[1]]} have the same scales and losses of {loss[rows[0]]:.5g} and"
      f" {loss[rows[1]]:.5g} ({len(differ)} such sets): taken for noise"
    )
  scale = np.sum([np.log(x) for x in known], axis=0)
  if len(loss) > 2 and np.corrcoef(scale, np.log(loss))[0, 1] > 0:
    said.append("the loss rises with scale: no law that falls will fit")
  return said


def groups(table: pl.DataFrame, path: str, name: str) -> dict[str, pl.DataFrame]:
  """The table by the values of a column, or whole as ''."""
  if not name:
    return {"": table}
  if name not in names(table):
    raise UserError(f"{path}: no column {name!r} for --group{nearest(name, names(table))}")
  parts: Any = table.partition_by(name, maintain_order=True, as_dict=True)
  return {str(key[0]): part for key, part in parts.items()}
