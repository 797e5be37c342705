"""The records of a study as a table for notebooks."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import polars as pl

from bigmodel import record
from bigmodel.config import nearest
from bigmodel.declarations import Value
from bigmodel.designs.design import Overrides
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.record import Record
from bigmodel.study import plan as plans

TARGET = "target"  # the run that tests the forecast is not part of the plan


def load(folder: str | Path, role: str = "") -> pl.DataFrame:
  """Returns a table with one row per run that has ended: its roles, the settings that vary, and its record.

  With `role`, only runs with that role. Raises `UserError` if the folder holds no study or no run has the role.
  """
  if not (absolute(folder) / "study.json").exists():
    raise UserError(f"{folder} holds no study (no study.json)")
  plan = plans.read(absolute(folder))
  planned = {run.run_id: run for run in plan.runs} if plan else {}
  ended = {run.run_id: run for run in record.collect(absolute(folder))}
  order = [run_id for run_id in planned if run_id in ended] + [run_id for run_id in ended if run_id not in planned]
  roles = {run_id: list(planned[run_id].roles) if run_id in planned else [TARGET] for run_id in order}
  known_roles = sorted({name for names in roles.values() for name in names})
  if role and role not in known_roles:
    raise UserError(f"{folder}: no run has the role {role!r}{nearest(role, known_roles)}; has {', '.join(known_roles)}")
  varied = _varied([run.overrides for run in planned.values()])
  rows = []
  for run_id in order:
    if role and role not in roles[run_id]:
      continue
    overrides: Overrides = planned[run_id].overrides if run_id in planned else {}
    about = {"run_id": run_id, "roles": roles[run_id], "status": ended[run_id].status}
    rows.append({**about, **{name: _cell(overrides.get(name)) for name in varied}, **_facts(ended[run_id])})
  return pl.DataFrame(rows, infer_schema_length=None)


def _facts(run: Record) -> dict[str, object]:
  """Returns the fields of a record that are not nested, and its metrics."""
  fields = msgspec.to_builtins(run)
  plain = {name: value for name, value in fields.items() if not isinstance(value, dict | list)}
  return {**plain, **{f"metric.{name}": value for name, value in run.metrics.items()}}


def _varied(overrides: Sequence[Overrides]) -> list[str]:
  """Returns the settings in which planned runs differ, in the order of the plan."""
  names = dict.fromkeys(name for one in overrides for name in one)
  return [name for name in names if len({repr(one.get(name)) for one in overrides}) > 1]


def _cell(value: Value | None) -> Value | None:
  """Returns a setting as a cell of a table: lists become text."""
  return str(tuple(value)) if isinstance(value, list | tuple) else value
