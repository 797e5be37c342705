"""Points that laws are fitted to: N, D, C and loss of each run, from records or a CSV."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from bigmodel.accounting import params_in
from bigmodel.errors import UserError
from bigmodel.laws import table
from bigmodel.laws.source import Source
from bigmodel.record import Record


@dataclasses.dataclass(frozen=True)
class Points:
  """Float64 columns of equal length; `convention` names how C, and so N, was counted."""

  N: np.ndarray
  D: np.ndarray
  C: np.ndarray
  loss: np.ndarray
  convention: str = "given"
  weights: np.ndarray | None = None  # of each point in a fit; None: all are equal
  rows: np.ndarray | None = None  # of the CSV, for messages

  def __len__(self) -> int:
    return len(self.loss)

  def __getitem__(self, index: np.ndarray | slice) -> "Points":
    """Some of the points, by a mask, by indices or by a slice."""
    return dataclasses.replace(
      self,
      N=self.N[index],
      D=self.D[index],
      C=self.C[index],
      loss=self.loss[index],
      weights=None if self.weights is None else self.weights[index],
      rows=None if self.rows is None else self.rows[index],
    )

  @property
  def flops_per_nd(self) -> float:
    """C over N D: 6 under `flops_6nd`, and its geometric mean under other conventions, in any order of the points."""
    return float(np.exp(np.mean(np.sort(np.log(self.C) - np.log(self.N) - np.log(self.D)))))

  def budgets(self) -> np.ndarray:
    """The FLOP budget of each point. Points within 15% of each other in C are one budget, of their geometric mean."""
    order = np.argsort(self.C)
    budget = np.empty(len(self))
    group: list[int] = []
    for index in order:
      if group and self.C[index] > self.C[group[0]] * 1.15:
        budget[group] = np.exp(np.mean(np.log(self.C[group])))
        group = []
      group.append(int(index))
    if group:
      budget[group] = np.exp(np.mean(np.log(self.C[group])))
    return budget


def from_records(records: Sequence[Record], convention: str) -> Points:
  """The points of the finished records, with C under `convention` and N as that convention counts parameters."""
  finished = [record for record in records if record.finished]
  N = np.array([params_in(record.params(), convention) for record in finished], np.float64)
  D = np.array([record.tokens for record in finished], np.float64)
  C = np.array([record.flops(convention) for record in finished], np.float64)
  return Points(N, D, C, np.array([record.loss for record in finished], np.float64), convention)


def from_csv(source: Source) -> Points:
  """The points of a CSV; of N, D and C, the one without a column follows from C = 6 N D.

  Raises `UserError` for a missing column, and for a value that is not a positive number, with its row.
  """
  return of_table(table.read(source).frame, source)


def of_table(read: pl.DataFrame, source: Source) -> Points:
  """The points of a table that was read from a CSV; see `from_csv`."""
  names = {name: source.columns[name] for name in ("N", "D", "C") if name in source.columns}
  if len(names) < 2:
    raise UserError("--n, --d, --c: name the columns of at least two")
  columns = table.columns(read, source.path, ("N", "D", "C"), names)
  loss, weights = table.losses(read, source)
  rows = read[table.ROW].to_numpy()
  points = Points(columns["N"], columns["D"], columns["C"], loss, weights=weights, rows=rows)
  if not 0 <= source.drop_largest < len(points):
    raise UserError(f"--drop-largest: {source.drop_largest} of {len(points)} points")
  if source.drop_largest:
    points = points[np.sort(np.argsort(points.loss, kind="stable")[: len(points) - source.drop_largest])]
  return points
