"""Reads loss curves and schedules from a CSV or a table in memory. Errors name the row."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from bigmodel import files
from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import table, units
from bigmodel.laws.schedules import budgets, curves
from bigmodel.laws.schedules.budgets import PerStep
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.notation import MOST_STEPS
from bigmodel.readers import tables


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of a table of curves. `group` separates sets that are fitted apart; empty: there is one.

  `scales` maps N (parameters), D (tokens up to a row) and C (FLOPs up to a row) to columns, for budgets.
  """

  curve: str = "curve"
  step: str = "step"
  lr: str = "lr"
  loss: str = "loss"
  group: str = ""
  scales: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CurveSets:
  """The curves of a file or folder by group, and what was assumed in reading it.

  `per_step` are the tokens and FLOPs of a step, by group, and `sha256` is that of the curves' source.
  """

  groups: dict[str, list[Curve]]
  notes: list[str]
  per_step: dict[str, PerStep]
  sha256: str


@dataclasses.dataclass(frozen=True)
class _Part:
  """Rows of a file, and how its numbers are written."""

  frame: pl.DataFrame
  path: str
  decimal: str


def read(path: str, columns: Columns, warmup: int | None = None) -> CurveSets:
  """The curves of a file. `warmup` is the number of steps over which the rate rises before the first row.

  Rows without a loss only give the schedule. Raises `UserError` for a column that is missing, a number that is not
  what its column holds, steps that do not increase, and schedules that the rows do not show.
  """
  whole, notes = _open(path)
  return _curve_sets(whole, notes, columns, warmup, files.sha256_file(path))


def of_table(frame: pl.DataFrame, columns: Columns, warmup: int | None = None) -> CurveSets:
  """The curves of a table in memory, as `read`; messages call it `curves`."""
  if frame.is_empty():
    raise UserError("curves: has no rows")
  part = _Part(frame.with_row_index(table.ROW), "curves", "")
  return _curve_sets(part, [], columns, warmup, files.sha256_text(frame.write_csv()))


def _curve_sets(whole: _Part, notes: Sequence[str], columns: Columns, warmup: int | None, sha256: str) -> CurveSets:
  """The curves of all rows."""
  path = whole.path
  _require(
    whole,
    (columns.curve, "--curve", "which run a row belongs to"),
    (columns.step, "--step", "the step of a row"),
    (columns.lr, "--lr", "the learning rate of a row, without which the schedule is unknown"),
    (columns.loss, "--loss", "the loss of a row"),
  )
  _require_value(whole, columns.curve)
  found, per_step = {}, {}
  for group, frame in table.groups(whole.frame, path, columns.group).items():
    parts = frame.partition_by(columns.curve, maintain_order=True, as_dict=True)
    found[group] = [
      _curve(str(key[0]), dataclasses.replace(whole, frame=part), columns, warmup) for key, part in parts.items()
    ]
    per_step[group] = _per_step(dataclasses.replace(whole, frame=frame), columns)
  notes = list(notes)
  late = [curve for curves_ in found.values() for curve in curves_ if curve.first_row > 1]
  if late and warmup is None:
    notes.append(
      f"{len(late)} of the curves begin after step 1 (curve {late[0].name} at step {late[0].first_row:,}); their rates"
      " are assumed to rise linearly from 0 up to there, unless --warmup=STEPS gives another length"
    )
  return CurveSets(found, notes, per_step, sha256)


def _per_step(part: _Part, columns: Columns) -> PerStep:
  """The tokens and FLOPs of a step, from the columns that hold their sums up to each row."""
  steps = _numbers(part, columns.step)
  if not columns.scales or not (steps > 0).any():
    return budgets.UNKNOWN
  part = dataclasses.replace(part, frame=part.frame.filter(pl.Series(steps > 0)))
  there = table.names(part.frame)
  named = [column.name for column in (units.parse(text, there) for text in columns.scales.values())]
  plain = [pl.Series(name, _numbers(part, name)) for name in dict.fromkeys(named) if name in there]
  frame, steps = part.frame.with_columns(plain), steps[steps > 0]
  values = table.columns(frame, part.path, (), columns.scales)
  if doubts := units.doubts(dict(columns.scales), {name: values[name] for name in columns.scales}, there):
    raise UserError(f"{part.path}: {'; '.join(map(str, doubts))}")
  return PerStep(
    tokens=budgets.ratio(f"{part.path}: tokens", values["D"], steps) if "D" in values else None,
    flops=budgets.ratio(f"{part.path}: FLOPs", values["C"], steps) if "C" in values else None,
  )


def _open(path: str) -> tuple[_Part, list[str]]:
  file = tables.read(path, missing=(), with_dates=False)
  frame = file.frame.with_columns(pl.Series(table.ROW, file.all_lines()))
  if frame.is_empty():
    raise UserError(f"{path}: has no rows")
  return _Part(frame, path, file.decimal), list(file.notes)


def _require(part: _Part, *columns: tuple[str, str, str]) -> None:
  """Raises `UserError` unless the columns (name, option, meaning) exist."""
  there = table.names(part.frame)
  for name, flag, what in columns:
    if name not in there:
      raise UserError(
        f"{part.path}: no column {name!r} for {flag} ({what}){nearest(name, there)}; it has {', '.join(there)}"
      )


def _require_value(part: _Part, name: str) -> None:
  missing = part.frame[name].is_null()
  if missing.any():
    row = part.frame[table.ROW][int(missing.to_numpy().argmax())]
    raise UserError(f"{part.path}: column {name!r}, row {row}: no value ({missing.sum()} such rows)")


def _curve(name: str, part: _Part, columns: Columns, warmup: int | None) -> Curve:
  steps, rates = _steps_and_rates(part, columns, f"curve {name}, ")
  curves.check_gaps(f"{part.path}: curve {name}", steps, rates)
  given = ~part.frame[columns.loss].is_null().to_numpy()
  losses = _numbers(part, columns.loss)
  _refuse(part, columns.loss, given & ~(np.isfinite(losses) & (losses > 0)), "a positive loss")
  if not given.any():
    raise UserError(f"{part.path}: curve {name}: none of its {len(steps)} rows has a loss")
  return Curve(name, steps[given], losses[given], curves.schedule(steps, rates, warmup), int(steps[0]))


def schedule(path: str, columns: Columns) -> np.ndarray:
  """The rate of every step, from a file of steps and learning rates."""
  part, _ = _open(path)
  _require(part, (columns.step, "--step", "the step of a row"), (columns.lr, "--lr", "the learning rate of a row"))
  steps, rates = _steps_and_rates(part, columns, "")
  curves.check_gaps(path, steps, rates)
  return curves.schedule(steps, rates)


def _steps_and_rates(part: _Part, columns: Columns, of: str) -> tuple[np.ndarray, np.ndarray]:
  steps = _numbers(part, columns.step)
  whole = np.isfinite(steps) & (steps == np.round(steps)) & (steps >= 0) & (steps <= MOST_STEPS)
  _refuse(part, columns.step, ~whole, f"a whole number from 0 to {MOST_STEPS:,}")
  rates = _numbers(part, columns.lr)
  _refuse(part, columns.lr, ~(np.isfinite(rates) & (rates >= 0)), "a learning rate (a number, not negative)")
  back = np.flatnonzero(np.diff(steps) <= 0)
  if len(back):
    row = part.frame[table.ROW][int(back[0]) + 1]
    raise UserError(
      f"{part.path}: {of}row {row}: step {steps[back[0] + 1]:g} follows step {steps[back[0]]:g}; the steps of a curve"
      " increase (if these are several runs, --curve or --group names the column that separates them)"
    )
  if not rates.any():
    raise UserError(f"{part.path}: {of}the learning rate is 0 in all rows")
  if steps[-1] < 1:
    raise UserError(f"{part.path}: {of}the only step is 0")
  return steps.astype(np.int64), rates


def _numbers(part: _Part, name: str) -> np.ndarray:
  """The numbers of a column, NaN for cells without one."""
  try:
    return table.numbers(part.frame[name], part.decimal)[0]
  except UserError as error:
    raise UserError(f"{part.path}: {error}") from error


def _refuse(part: _Part, name: str, wrong: np.ndarray, wanted: str) -> None:
  if wrong.any():
    at = int(wrong.argmax())
    row, value = part.frame[table.ROW][at], part.frame[name][at]
    problem = f"no value in place of {wanted}" if value is None else f"{value!r} is not {wanted}"
    raise UserError(f"{part.path}: column {name!r}, row {row}: {problem} ({int(wrong.sum())} such rows)")
