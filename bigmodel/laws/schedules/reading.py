"""Reads loss curves and schedules from a CSV. Errors name the row of the file."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import table
from bigmodel.laws.schedules import curves
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.notation import MOST_STEPS


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of a CSV of curves. `group` separates sets that are fitted apart; empty: there is one."""

  curve: str = "curve"
  step: str = "step"
  lr: str = "lr"
  loss: str = "loss"
  group: str = ""


def read(path: str, columns: Columns, warmup: int | None = None) -> dict[str, list[Curve]]:
  """The curves of a CSV by group. `warmup` is the steps over which the rate rises before the first row.

  Rows without a loss only give the schedule. Raises `UserError` for a column that is missing, a number that is not
  what its column holds, steps that do not increase, and schedules that the rows do not show.
  """
  return from_table(table.read(path), path, columns, warmup)


def from_table(rows: pl.DataFrame, path: str, columns: Columns, warmup: int | None = None) -> dict[str, list[Curve]]:
  """As `read`, from a table with the row numbers of `table.read`."""
  there = table.names(rows)
  for name, flag, what in (
    (columns.curve, "--curve", "which run a row belongs to"),
    (columns.step, "--step", "the step of a row"),
    (columns.lr, "--lr", "the learning rate of a row, without which the schedule is unknown"),
    (columns.loss, "--loss", "the loss of a row"),
  ):
    if name not in there:
      raise UserError(
        f"{path}: no column {name!r} for {flag} ({what}){nearest(name, there)}; it has {', '.join(there)}"
      )
  found = {}
  for group, part in table.groups(rows, path, columns.group).items():
    parts = part.partition_by(columns.curve, maintain_order=True, as_dict=True)
    found[group] = [_curve(str(key[0]), each, path, columns, warmup) for key, each in parts.items()]
  return found


def _curve(name: str, rows: pl.DataFrame, path: str, columns: Columns, warmup: int | None) -> Curve:
  steps, rates = _steps_and_rates(rows, path, columns, f"curve {name}, ")
  curves.check_gaps(f"{path}: curve {name}", steps, rates)
  raw = rows[columns.loss]
  losses = raw.cast(pl.Float64, strict=False).to_numpy()
  given = np.array([value is not None and str(value).strip() != "" for value in raw.to_list()])
  _refuse(rows, path, columns.loss, given & ~(np.isfinite(losses) & (losses > 0)), "a positive loss")
  if not given.any():
    raise UserError(f"{path}: curve {name}: none of its {len(steps)} rows has a loss")
  return Curve(name, steps[given], losses[given], curves.schedule(steps, rates, warmup))


def schedule(path: str, columns: Columns) -> np.ndarray:
  """The rate of every step, from a CSV of steps and learning rates."""
  rows = table.read(path)
  there = table.names(rows)
  for name, flag in ((columns.step, "--step"), (columns.lr, "--lr")):
    if name not in there:
      raise UserError(f"{path}: no column {name!r} for {flag}{nearest(name, there)}; it has {', '.join(there)}")
  if rows.is_empty():
    raise UserError(f"{path}: has no rows")
  return curves.schedule(*_steps_and_rates(rows, path, columns, ""))


def _steps_and_rates(rows: pl.DataFrame, path: str, columns: Columns, of: str) -> tuple[np.ndarray, np.ndarray]:
  steps = rows[columns.step].cast(pl.Float64, strict=False).to_numpy()
  whole = np.isfinite(steps) & (steps == np.round(steps)) & (steps >= 0) & (steps <= MOST_STEPS)
  _refuse(rows, path, columns.step, ~whole, f"a whole number from 0 to {MOST_STEPS:,}")
  rates = rows[columns.lr].cast(pl.Float64, strict=False).to_numpy()
  _refuse(rows, path, columns.lr, ~(np.isfinite(rates) & (rates >= 0)), "a learning rate (a number, not negative)")
  back = np.flatnonzero(np.diff(steps) <= 0)
  if len(back):
    first = int(back[0])
    raise UserError(
      f"{path}: {of}row {rows[table.ROW][first + 1]}: step {steps[first + 1]:g} follows step {steps[first]:g}; the steps"
      " of a curve increase (are these several runs? then --curve or --group names the column that separates them)"
    )
  if not rates.any():
    raise UserError(f"{path}: {of}the learning rate is 0 in all rows")
  if steps[-1] < 1:
    raise UserError(f"{path}: {of}the only step is 0")
  return steps.astype(np.int64), rates


def _refuse(rows: pl.DataFrame, path: str, name: str, wrong: np.ndarray, wanted: str) -> None:
  places: Sequence[int] = np.flatnonzero(wrong).tolist()
  if places:
    row, value = rows[table.ROW][places[0]], rows[name][places[0]]
    raise UserError(f"{path}: column {name!r}, row {row}: {value!r} is not {wanted} ({len(places)} such rows)")
