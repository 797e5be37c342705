"""Fits the laws of a study's folder to its records."""

from typing import Any

from etils import epath

from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.laws import chinchilla, forecast
from bigmodel.laws import summary as laws
from bigmodel.record import Record
from bigmodel.study import folder
from bigmodel.study import plan as plans
from bigmodel.study.leaderboard import SEEDS


def fit_study(workdir: epath.PathLike) -> dict[str, Any]:
  """Fits the laws of a study's folder to its records; fits.json keeps them until the records change."""
  workdir = epath.Path(workdir)
  about = folder.read_about(workdir)
  fitted = folder.of_role(workdir, "fit")
  every = fitted + folder.of_role(workdir, "seed") + folder.of_role(workdir, "scan")
  inputs = laws.inputs_sha256(every, [*about.laws, about.measure], about.convention)
  path = workdir / "fits.json"
  if path.exists() and (earlier := read_json(path))["inputs_sha256"] == inputs:
    return earlier
  finished = [one for one in fitted if one.finished]
  used = forecast.find_laws([name for name in about.laws if name != "isoflop"], "get_study: laws")
  needed = 1 + max(len(law.names) for law in used or [chinchilla.LAW])
  if len(finished) < needed:
    raise UserError(
      f"{workdir}: {len(finished)} of {len(fitted)} fitted runs finished; the study's laws need at least {needed}"
    )
  facts = laws.fit(finished, list(about.laws), about.convention, about.target_flops)
  facts |= {"noise_floor": _noise(workdir), "scans": _scans(workdir), "inputs_sha256": inputs}
  write_json(path, facts)
  return facts


def _noise(workdir: epath.Path) -> dict[str, Any] | None:
  """The spread over seeds of the largest of the runs that were repeated with other seeds."""
  shared, repeated = {}, set()
  for run in plans.planned_runs(workdir):
    key = repr(sorted((name, value) for name, value in run.overrides.items() if name not in SEEDS))
    shared[run.run_id] = key
    if "seed" in run.roles:
      repeated.add(key)
  cells: dict[str, dict[str, Record]] = {}
  for one in folder.of_role(workdir, "seed") + folder.of_role(workdir, "fit"):
    if shared[one.run_id] in repeated:
      cells.setdefault(shared[one.run_id], {})[one.run_id] = one
  floors = []
  for runs in cells.values():
    if floor := laws.noise_floor(list(runs.values())):
      finished = next(run for run in runs.values() if run.finished)
      floors.append(floor | {"N": finished.params_total, "D": finished.tokens})
  return max(floors, key=lambda floor: floor["N"] * floor["D"], default=None)


def _scans(workdir: epath.Path) -> list[dict[str, Any]]:
  """The learning-rate scans; the first run of each has the rate of the study's rule."""
  cells: dict[str, list[str]] = {}
  for run in plans.planned_runs(workdir):
    if "scan" in run.roles:
      setting = sorted((name, value) for name, value in run.overrides.items() if name != "optim.lr")
      cells.setdefault(repr(setting), []).append(run.run_id)
  by_id = {one.run_id: one for one in folder.of_role(workdir, "scan")}
  scans = [[by_id[run_id] for run_id in ids if run_id in by_id] for ids in cells.values()]
  return [laws.scan(records, records[0].learning_rate) for records in scans if records]
