"""Columns of a CSV for laws, under the names that laws have for them; what is wrong is named by row."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.files import UserError


def read(path: str) -> pl.DataFrame:
  try:
    return pl.read_csv(path, infer_schema_length=10_000)
  except Exception as error:
    raise UserError(f"{path}: not a readable CSV ({str(error).strip().splitlines()[0]})") from error


def column(table: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """A column of positive numbers."""
  if name not in table.columns:
    raise UserError(
      f"{path}: no column {name!r} for {flag}{nearest(name, table.columns)}; it has {', '.join(table.columns)}"
    )
  values = table[name].cast(pl.Float64, strict=False).to_numpy()
  wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
  if len(wrong):
    raise UserError(
      f"{path}: column {name!r}, row {wrong[0] + 2}: {table[name][int(wrong[0])]!r} is not a positive number"
      f" ({len(wrong)} such rows)"
    )
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


def warnings(known: Sequence[np.ndarray], loss: np.ndarray) -> list[str]:
  """What a reader should know of points before believing a fit to them."""
  said: list[str] = []
  keys: dict[tuple[float, ...], list[int]] = {}
  for row, key in enumerate(zip(*known, strict=True)):
    keys.setdefault(tuple(map(float, key)), []).append(row)
  differ = [rows for rows in keys.values() if len(rows) > 1 and np.ptp(loss[rows]) > 0]
  if differ:
    rows = differ[0]
    said.append(
      f"rows {rows[0] + 2} and {rows[1] + 2} have the same scales and losses of {loss[rows[0]]:.5g} and"
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
  if name not in table.columns:
    raise UserError(f"{path}: no column {name!r} for --group{nearest(name, table.columns)}")
  parts: Any = table.partition_by(name, maintain_order=True, as_dict=True)
  return {str(key[0]): part for key, part in parts.items()}
