"""Points that laws are fitted to: N, D, C and loss of each run, from records or a CSV."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel.accounting import params_in
from bigmodel.errors import UserError
from bigmodel.laws import table
from bigmodel.record import Record


@dataclasses.dataclass(frozen=True)
class Points:
  """Float64 columns of equal length; `convention` says how C (and so N) was counted."""

  N: np.ndarray
  D: np.ndarray
  C: np.ndarray
  loss: np.ndarray
  convention: str = "given"
  weights: np.ndarray | None = None  # of each in a fit; None: all alike
  rows: np.ndarray | None = None  # of the CSV

  def __len__(self) -> int:
    return len(self.loss)

  def __getitem__(self, index: Any) -> "Points":
    part = lambda x: None if x is None else x[index]
    return Points(
      self.N[index],
      self.D[index],
      self.C[index],
      self.loss[index],
      self.convention,
      part(self.weights),
      part(self.rows),
    )

  def budgets(self) -> np.ndarray:
    """The FLOP budget of each point: C rounded to the nearest of the groups it falls into.

    Points within 15% of each other in C are one budget.
    """
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
  """The finished records' points, with C under `convention` and N as that convention counts it."""
  finished = [record for record in records if record.finished]
  N = np.array([params_in(record.params(), convention) for record in finished], np.float64)
  D = np.array([record.tokens for record in finished], np.float64)
  C = np.array([record.flops(convention) for record in finished], np.float64)
  return Points(N, D, C, np.array([record.loss for record in finished], np.float64), convention)


def from_csv(
  path: str, n: str | None, d: str | None, c: str | None, loss: str, drop_largest: int = 0, stderr: str | None = None
) -> Points:  # fmt: skip
  """Reads a CSV; the one of N, D and C that has no column follows from C = 6 N D.

  `drop_largest` leaves out the points with that many largest losses; `stderr` has the losses' standard errors.
  """
  read = table.read(path)
  if sum(name is not None for name in (n, d, c)) < 2:
    raise UserError("--n, --d, --c: name the columns of at least two")
  named = {name: own for name, own in (("N", n), ("D", d), ("C", c)) if own is not None}
  found = table.columns(read, path, ("N", "D", "C"), named)
  losses = table.column(read, path, loss, "--loss")
  weights = table.weights(losses, table.column(read, path, stderr, "--stderr")) if stderr else None
  points = Points(found["N"], found["D"], found["C"], losses, weights=weights, rows=read[table.ROW].to_numpy())
  if not 0 <= drop_largest < len(points):
    raise UserError(f"--drop-largest: {drop_largest} of {len(points)} points")
  if drop_largest:
    points = points[np.sort(np.argsort(points.loss, kind="stable")[: len(points) - drop_largest])]
  return points
