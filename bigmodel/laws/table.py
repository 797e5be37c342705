"""Reads columns of a CSV, under the names that laws have for them. Errors name the row of the file."""

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import units
from bigmodel.laws.source import Source

ROW = "\0row"  # a column with each row's number in the file, for messages about a part of the table


def read(path: str) -> pl.DataFrame:
  """The CSV with its row numbers as the column `ROW`; raises `UserError` if it is not readable."""
  try:
    return pl.read_csv(path, infer_schema_length=10_000).with_row_index(ROW, offset=2)
  except Exception as error:
    raise UserError(f"{path}: not a readable CSV ({str(error).strip().splitlines()[0]})") from error


def names(table: pl.DataFrame) -> list[str]:
  """The columns of the file."""
  return [name for name in table.columns if name != ROW]


def column(table: pl.DataFrame, path: str, name: str, flag: str) -> np.ndarray:
  """A column of positive numbers, converted as `name` says (`units.parse`); `flag` is the option, for messages."""
  there = names(table)
  conversion = units.parse(name, there, flag)
  name = conversion.name
  if name not in there:
    raise UserError(f"{path}: no column {name!r} for {flag}{nearest(name, there)}; it has {', '.join(there)}")
  values = conversion.values(table[name].cast(pl.Float64, strict=False).to_numpy())
  wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
  if len(wrong):
    row, value = table[ROW][int(wrong[0])], table[name][int(wrong[0])]
    raise UserError(f"{path}: column {name!r}, row {row}: {value!r} is not a positive number ({len(wrong)} such rows)")
  return values


def columns(
  table: pl.DataFrame, path: str, wanted: Iterable[str], column_names: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The columns that a law needs, by the law's names; of N, D and C the third follows from C = 6 N D."""
  values = {name: column(table, path, each, f"--{name.lower()}") for name, each in column_names.items()}
  if "C" not in values and {"N", "D"} <= set(values):
    values["C"] = 6 * values["N"] * values["D"]
  if "N" not in values and {"C", "D"} <= set(values):
    values["N"] = values["C"] / (6 * values["D"])
  if "D" not in values and {"C", "N"} <= set(values):
    values["D"] = values["C"] / (6 * values["N"])
  missing = [name for name in wanted if name not in values]
  if missing:
    raise UserError(
      f"{path}: which column is {' and '.join(missing)}? --{missing[0].lower()}=COLUMN, or --column {missing[0]}=COLUMN"
    )
  return values


def losses(table: pl.DataFrame, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
  """`(losses, weights)` of the rows; weights follow from standard errors, and are None without them."""
  loss = column(table, source.path, source.loss, "--loss")
  if not source.stderr:
    return loss, None
  return loss, weights(loss, column(table, source.path, source.stderr, "--stderr"))


def weights(loss: np.ndarray, stderr: np.ndarray) -> np.ndarray:
  """Weights of points in a fit, with a mean of 1: the inverse variances of the logs of the losses."""
  inverse = (loss / stderr) ** 2
  return inverse / inverse.mean()


def groups(table: pl.DataFrame, path: str, name: str) -> dict[str, pl.DataFrame]:
  """The parts of the table by the values of the column `name`, or the whole table as "" if `name` is empty."""
  if not name:
    return {"": table}
  if name not in names(table):
    raise UserError(f"{path}: no column {name!r} for --group{nearest(name, names(table))}")
  parts = table.partition_by(name, maintain_order=True, as_dict=True)
  return {str(key[0]): part for key, part in parts.items()}
