"""Fits the laws of a study's folder to its records."""

from typing import Any

from etils import epath
from msgspec import structs

from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.laws import chinchilla, facts, forecast
from bigmodel.laws import summary as laws
from bigmodel.laws.facts import Fits, NoiseFloor, RateScan
from bigmodel.study import folder
from bigmodel.study.leaderboard import SEEDS


def fit_study(workdir: epath.PathLike) -> Fits:
  """Fits the laws of a study's folder to its records; fits.json keeps them until the records change."""
  workdir = epath.Path(workdir)
  about = read_json(workdir / "study.json")
  fitted = folder.of_role(workdir, "fit")
  every = fitted + folder.of_role(workdir, "seed") + folder.of_role(workdir, "scan")
  inputs = laws.inputs_sha256(every, [*about["laws"], about["measure"]], about["convention"])
  path = workdir / "fits.json"
  if path.exists() and (document := read_json(path))["inputs_sha256"] == inputs:
    return facts.from_json(document, Fits, str(path))
  finished = [one for one in fitted if one["status"] == "finished"]
  used = forecast.find_laws([name for name in about["laws"] if name != "isoflop"], "get_study: laws")
  needed = 1 + max(len(law.names) for law in used or [chinchilla.LAW])
  if len(finished) < needed:
    raise UserError(
      f"{workdir}: {len(finished)} of {len(fitted)} fitted runs finished; the study's laws need at least {needed}"
    )
  fits = laws.fit(finished, about["laws"], about["convention"], about["target_flops"])
  fits = structs.replace(fits, noise_floor=_noise(workdir), scans=_scans(workdir), inputs_sha256=inputs)
  write_json(path, facts.to_json(fits))
  return fits


def _noise(workdir: epath.Path) -> NoiseFloor | None:
  """The spread over seeds: of the largest of the cells that were repeated, by what their runs share in the plan."""
  rows = (folder.read_plan(workdir) or {"runs": []})["runs"]
  shared = {}
  for row in rows:
    shared[row["run_id"]] = repr(sorted((name, x) for name, x in row["overrides"].items() if name not in SEEDS))
  repeated = {shared[row["run_id"]] for row in rows if "seed" in row["roles"]}
  cells: dict[str, dict[str, dict[str, Any]]] = {}
  for one in folder.of_role(workdir, "seed") + folder.of_role(workdir, "fit"):
    if shared[one["run_id"]] in repeated:
      cells.setdefault(shared[one["run_id"]], {})[one["run_id"]] = one
  floors = [floor for runs in cells.values() if (floor := laws.noise_floor(list(runs.values())))]
  return max(floors, key=lambda floor: (floor.N or 0) * (floor.D or 0), default=None)


def _scans(workdir: epath.Path) -> list[RateScan]:
  """Scans by what their runs share in the plan; the first that was planned has the rule's own rate."""
  plan_ = folder.read_plan(workdir) or {"runs": []}
  cells: dict[str, list[str]] = {}
  for row in plan_["runs"]:
    if "scan" in row["roles"]:
      key = {name: value for name, value in row["overrides"].items() if name != "optim.lr"}
      cells.setdefault(repr(sorted(key.items())), []).append(row["run_id"])
  by_id = {one["run_id"]: one for one in folder.of_role(workdir, "scan")}
  scans = [[by_id[i] for i in ids if i in by_id] for ids in cells.values()]
  return [laws.scan(records, records[0]["learning_rate"]) for records in scans if records]
