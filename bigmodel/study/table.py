"""The records of a study as a table for notebooks."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from bigmodel import record
from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.study import folder as folders

TARGET = "target"  # the run that tests the forecast is not part of the plan


def load(folder: str | Path, role: str = "") -> pl.DataFrame:
  """One row per run that has ended: its roles, the settings that the study varies, and the fields of its record.

  With `role`, only runs planned for it. Raises `UserError` where the folder holds no study, or no run has the role.
  """
  if not (absolute(folder) / "study.json").exists():
    raise UserError(f"{folder} holds no study (no study.json)")
  planned = {row["run_id"]: row for row in (folders.read_plan(absolute(folder)) or {"runs": []})["runs"]}
  ended = {one["run_id"]: one for one in record.collect(absolute(folder))}
  order = [run_id for run_id in planned if run_id in ended] + [run_id for run_id in ended if run_id not in planned]
  varied = _varied([row["overrides"] for row in planned.values()])
  rows = []
  for run_id in order:
    one, plan = ended[run_id], planned.get(run_id, {"roles": [TARGET], "overrides": {}})
    settings = {name: _cell(plan["overrides"].get(name)) for name in varied}
    facts = {name: value for name, value in one.items() if not isinstance(value, dict | list)}
    metrics = {f"metric.{name}": value for name, value in one["metrics"].items()}
    about = {"run_id": run_id, "roles": plan["roles"], "status": one["status"]}
    rows.append({**about, **settings, **facts, **metrics})
  roles = sorted({name for row in rows for name in row["roles"]})
  if role and role not in roles:
    raise UserError(f"{folder}: no run has the role {role!r}{nearest(role, roles)}; they have {', '.join(roles)}")
  kept = [row for row in rows if not role or role in row["roles"]]
  return pl.DataFrame(kept, infer_schema_length=None)


def _varied(overrides: list[Mapping[str, object]]) -> list[str]:
  """The settings in which planned runs differ, in the order of the plan."""
  names = dict.fromkeys(name for one in overrides for name in one)
  return [name for name in names if len({repr(one.get(name)) for one in overrides}) > 1]


def _cell(value: object) -> object:
  """A setting as a cell of a table: tuples, which JSON has as lists, are text."""
  return str(tuple(value)) if isinstance(value, list | tuple) else value
