"""Fits the laws of a study's folder to its records."""

from etils import epath
from msgspec import structs

from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.laws import chinchilla, facts, forecast
from bigmodel.laws import summary as laws
from bigmodel.laws.facts import Fits, NoiseFloor, RateScan
from bigmodel.record import Record
from bigmodel.study import folder
from bigmodel.study import plan as plans
from bigmodel.study.leaderboard import SEEDS


def fit_study(workdir: epath.PathLike) -> Fits:
  """Fits the laws of a study's folder to its records; reuses fits.json unless the records have changed."""
  workdir = epath.Path(workdir)
  about = folder.read_about(workdir)
  fitted = folder.of_role(workdir, "fit")
  every = fitted + folder.of_role(workdir, "seed") + folder.of_role(workdir, "scan")
  inputs = laws.inputs_sha256(every, [*about.laws, about.measure], about.convention)
  path = workdir / "fits.json"
  if path.exists() and (earlier := read_json(path))["inputs_sha256"] == inputs:
    return facts.from_json(earlier, Fits, str(path))
  finished = [run for run in fitted if run.finished]
  used = forecast.find_laws([name for name in about.laws if name != "isoflop"], "get_study: laws")
  needed = 1 + max(len(law.names) for law in used or [chinchilla.LAW])
  if len(finished) < needed:
    raise UserError(
      f"{workdir}: {len(finished)} of {len(fitted)} fitted runs finished; the study's laws need at least {needed}"
    )
  fits = laws.fit(finished, list(about.laws), about.convention, about.target_flops)
  fits = structs.replace(fits, noise_floor=_noise(workdir), scans=_scans(workdir), inputs_sha256=inputs)
  write_json(path, facts.to_json(fits))
  return fits


def _noise(workdir: epath.Path) -> NoiseFloor | None:
  """Returns the spread over seeds of the largest run that was repeated with other seeds."""
  shared, repeated = {}, set()
  for run in plans.planned_runs(workdir):
    key = repr(sorted((name, value) for name, value in run.overrides.items() if name not in SEEDS))
    shared[run.run_id] = key
    if "seed" in run.roles:
      repeated.add(key)
  cells: dict[str, dict[str, Record]] = {}
  for run in folder.of_role(workdir, "seed") + folder.of_role(workdir, "fit"):
    if shared[run.run_id] in repeated:
      cells.setdefault(shared[run.run_id], {})[run.run_id] = run
  floors = [floor for runs in cells.values() if (floor := laws.noise_floor(list(runs.values())))]
  return max(floors, key=lambda floor: (floor.N or 0) * (floor.D or 0), default=None)


def _scans(workdir: epath.Path) -> list[RateScan]:
  """Returns the learning-rate scans; the first run of each has the rate of the study's rule."""
  cells: dict[str, list[str]] = {}
  for run in plans.planned_runs(workdir):
    if "scan" in run.roles:
      setting = sorted((name, value) for name, value in run.overrides.items() if name != "optim.lr")
      cells.setdefault(repr(setting), []).append(run.run_id)
  by_id = {one.run_id: one for one in folder.of_role(workdir, "scan")}
  scans = [[by_id[run_id] for run_id in ids if run_id in by_id] for ids in cells.values()]
  return [laws.scan(records, records[0].learning_rate) for records in scans if records]
