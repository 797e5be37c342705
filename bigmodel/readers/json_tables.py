"""Tables of JSON lines: nested objects become columns with dotted names."""

import array
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.errors import UserError
from bigmodel.readers import json_lines

DEEPEST = 20  # nested objects


def read(file: Path) -> tuple[pl.DataFrame, np.ndarray]:
  """The table with a row per line, and the numbers of the lines. Lists become texts."""
  columns: dict[str, list[object]] = {}
  lines = array.array("q")
  for number, row in json_lines.rows(file):
    for name, value in _flat(row, "", f"line {number}", 0):
      column = columns.setdefault(name, [])
      column.extend([None] * (len(lines) - len(column)))
      column.append(value)
    lines.append(number)
  for column in columns.values():
    column.extend([None] * (len(lines) - len(column)))
  if not columns:
    raise UserError("has no rows with fields")
  return pl.DataFrame([_series(name, values) for name, values in columns.items()]), np.array(lines, np.int64)


def _flat(row: Mapping[str, object], prefix: str, where: str, depth: int) -> Iterator[tuple[str, object]]:
  if depth > DEEPEST:
    raise UserError(f"{where}: objects are nested more than {DEEPEST} deep")
  for key, value in row.items():
    name = json_lines.without_surrogates(f"{prefix}{key}")
    if isinstance(value, dict):
      yield from _flat(value, f"{name}.", where, depth + 1)
    else:
      yield name, value


def _series(name: str, values: Sequence[object]) -> pl.Series:
  """A column of numbers, truth values or texts; values of different kinds become texts."""
  kinds = {type(value) for value in values if value is not None}
  if kinds == {bool}:
    return pl.Series(name, values, pl.Boolean)
  if kinds and kinds <= {int, float}:
    is_small = kinds == {int} and all(isinstance(x, int) and abs(x) < 1 << 63 for x in values if x is not None)
    if is_small:
      return pl.Series(name, values, pl.Int64)
    return pl.Series(name, [None if x is None else _float(x) for x in values], pl.Float64)
  return pl.Series(name, [None if value is None else _text(value) for value in values], pl.String)


def _float(value: object) -> float:
  assert isinstance(value, int | float)
  try:
    return float(value)
  except OverflowError:
    return float("inf")


def _text(value: object) -> str:
  return json_lines.without_surrogates(value if isinstance(value, str) else json.dumps(value))
