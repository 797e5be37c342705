"""A study's folder: study.json and plan.json, which accept added runs and refuse changed ones."""

from typing import Any

from etils import epath

from bigmodel.config import Config, difference, flatten
from bigmodel.files import UserError, read_json, write_json
from bigmodel.train.run import NOT_IDENTITY


def open_study(folder: epath.PathLike, name: str, config: Config, about: dict[str, Any]) -> None:
  """Claims a folder for the study of this base config; refuses another's, with the difference."""
  folder = epath.Path(folder)
  path = folder / "study.json"
  flat = flatten(config)
  if path.exists():
    known = read_json(path)
    same = lambda f: {k: v for k, v in f.items() if not k.startswith(NOT_IDENTITY)}
    changed = difference(same(known["config"]), same(flat))
    if known["name"] != name or changed:
      what = changed or f"name: {known['name']!r} -> {name!r}"
      raise UserError(f"{folder} holds another study ({what}); choose another --workdir")
    return
  if (folder / "config.json").exists():
    raise UserError(f"{folder} holds a run; choose another --workdir")
  write_json(path, {"name": name, "config": flat, **about})


def read_plan(folder: epath.PathLike) -> dict[str, Any] | None:
  path = epath.Path(folder) / "plan.json"
  return read_json(path) if path.exists() else None


def merge(old: dict[str, Any] | None, new: dict[str, Any], folder: epath.PathLike) -> dict[str, Any]:
  """The plan with added runs; what was planned keeps its program. Refuses a plan that lost runs."""
  if old is None:
    return new
  known = {run["run_id"]: run for run in old["runs"]}
  ids = {run["run_id"] for run in new["runs"]}
  lost = sorted(set(known) - ids)
  if lost:
    run = known[lost[0]]
    raise UserError(
      f"{folder}: the study no longer has {len(lost)} of its runs, such as {lost[0]} ({', '.join(run['roles'])},"
      f" {run['overrides']}); a study's runs are added to, not changed: choose another --workdir"
    )
  added = [run for run in new["runs"] if run["run_id"] not in known]
  if not added:
    return old
  fresh = {run["run_id"] for run in added}
  groups = [group | {"run_ids": [i for i in group["run_ids"] if i in fresh]} for group in new["groups"]]
  return new | {"runs": old["runs"] + added, "groups": old["groups"] + [g for g in groups if g["run_ids"]]}
