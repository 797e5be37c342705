"""The plan of a study, stored in plan.json: its runs with expected costs, their groups, and the totals."""

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
from etils import epath

from bigmodel.declarations import Value
from bigmodel.designs import branches
from bigmodel.designs.design import Planned
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.planner import price as pricing
from bigmodel.planner.price import Calibration, Price
from bigmodel.record import Branch
from bigmodel.train import programs
from bigmodel.train.run import Run, now
from bigmodel.workers import packs
from bigmodel.workers.groups import Group


class PlannedRun(Price, frozen=True, kw_only=True, omit_defaults=True):
  """A planned run: its roles, how its config differs from the study's, and its expected cost."""

  run_id: str
  roles: tuple[str, ...]
  budget: float  # FLOPs of the design, in the study's convention; 0 if the design has no budgets
  overrides: dict[str, Value]
  trunk: Branch = Branch()


class Totals(msgspec.Struct, frozen=True):
  """The costs of all runs of a plan and of its target."""

  runs: int
  flops_6nd: float
  flops_exact: float
  tokens: int
  flops_6nd_shared: float  # FLOPs that branches save, because their trunks spend them
  disk_bytes: int
  expected_seconds: float


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
  """The runs that a study will train, their groups, and their costs."""

  study: str
  planned_at: str
  calibration: Calibration
  runs: tuple[PlannedRun, ...]
  groups: tuple[Group, ...]
  target: Price | None  # cost of the most expensive candidate for the target
  total: Totals
  round: tuple[Group, ...] = ()  # the groups that workers of an adaptive design train now
  workers_train_target: bool = False

  def seconds_left(self, workdir: epath.PathLike) -> float:
    """Returns the expected seconds of the groups that have not ended, and of the target if it has not."""
    runs = epath.Path(workdir) / "runs"

    def has_record(run_id: str) -> bool:
      return (runs / run_id / "record.json").exists()

    left = sum(group.expected_seconds for group in self.groups if not all(map(has_record, group.run_ids)))
    planned = {run.run_id for run in self.runs}
    others = [path.name for path in runs.glob("*")] if runs.exists() else []
    target_has_ended = any(name not in planned and has_record(name) for name in others)
    return left + (self.target.expected_seconds if self.target and not target_has_ended else 0.0)


@dataclasses.dataclass(frozen=True)
class Workforce:
  """The number of worker processes that will train a study, and of machines like this one whose devices they use."""

  workers: int = 1
  machines: int = 1
  on_cluster: bool = False


HERE = Workforce()


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The runs of a study by id, with the design's plans for each, and the candidates for its target."""

  study: str
  runs: Mapping[str, Run]
  planned: Mapping[str, Sequence[Planned]]
  targets: Sequence[Run]

  def roles(self, run_id: str) -> tuple[str, ...]:
    return tuple(sorted({planned.role for planned in self.planned[run_id]}))


def read(folder: epath.PathLike) -> Plan | None:
  """Reads the plan of a study's folder; returns None if it has no plan yet."""
  path = epath.Path(folder) / "plan.json"
  if not path.exists():
    return None
  try:
    return msgspec.convert(read_json(path), Plan)
  except msgspec.ValidationError as error:
    raise UserError(f"{path}: is corrupt ({error}); delete it to plan again") from error


def planned_runs(folder: epath.PathLike) -> tuple[PlannedRun, ...]:
  """Returns the planned runs of a study's folder; () if it has no plan yet."""
  plan = read(folder)
  return plan.runs if plan is not None else ()


def write(folder: epath.Path, plan: Plan) -> None:
  write_json(folder / "plan.json", to_json(plan))


def to_json(plan: Plan) -> dict[str, object]:
  """The plan as plan.json holds it; runs that do not branch have no `trunk`."""
  document = msgspec.to_builtins(plan)
  for run in document["runs"]:
    if not run.get("trunk"):
      run.pop("trunk", None)
  return document


def make(wanted: Wanted, earlier: Plan | None = None, workforce: Workforce = HERE) -> Plan:
  """Estimates the costs of a study's runs and groups them. Runs of the `earlier` plan keep their costs and groups.

  For a study on a cluster, this machine times only the smallest run, because larger runs may not fit on it.
  """
  old = {run.run_id for run in earlier.runs} if earlier else set[str]()
  if earlier is not None and old >= wanted.runs.keys():
    return msgspec.structs.replace(earlier, runs=_with_roles(earlier, wanted))
  added = {run_id: run for run_id, run in wanted.runs.items() if run_id not in old}
  # A trunk of an earlier plan may have passed the step from which a new run would branch.
  starts = branches.find(added)
  grouped = _group(added, starts, workforce)
  members = _members(grouped, added)
  calibration, compiled = pricing.calibrate([*added.values(), *wanted.targets], members, workforce.on_cluster)
  runs = tuple(_price(run, wanted, calibration, starts.get(run_id), members) for run_id, run in added.items())
  in_packs = {run_id: (run, members[run_id]) for run_id, run in added.items()}
  groups = _price_groups(grouped, runs, in_packs, calibration, compiled)
  target = _price_target(wanted.targets, calibration, compiled)
  if earlier is not None:
    runs, groups = _with_roles(earlier, wanted) + runs, earlier.groups + groups
  return Plan(
    study=wanted.study,
    planned_at=now(),
    calibration=calibration,
    runs=runs,
    groups=groups,
    target=target,
    total=_totals(runs, groups, target),
  )


def _with_roles(earlier: Plan, wanted: Wanted) -> tuple[PlannedRun, ...]:
  """Returns the runs of an earlier plan, with the roles that the design has added to them since."""

  def roles(run: PlannedRun) -> tuple[str, ...]:
    added = wanted.roles(run.run_id) if run.run_id in wanted.runs else ()
    return tuple(sorted({*run.roles, *added}))

  return tuple(msgspec.structs.replace(run, roles=roles(run)) for run in earlier.runs)


def _group(runs: Mapping[str, Run], starts: Mapping[str, Branch], workforce: Workforce) -> list[list[str]]:
  """Returns the run ids of each group. Runs of a group start at the same step; trunks come before branches."""
  first = {run_id: starts[run_id].step if run_id in starts else 0 for run_id in runs}
  parts = [[run for run in runs.values() if first[run.run_id] == step] for step in sorted({*first.values()})]
  return [ids for part in parts for ids in packs.group(part, workforce.workers, workforce.machines)]


def _members(grouped: Sequence[Sequence[str]], runs: Mapping[str, Run]) -> dict[str, int]:
  """Returns, by run id, the number of members of the pack in which the run trains on this machine."""
  members: dict[str, int] = {}
  for ids in grouped:
    for pack in packs.cut([runs[run_id] for run_id in ids]):
      members |= dict.fromkeys((run.run_id for run in pack), len(pack))
  return members


def _price(
  run: Run, wanted: Wanted, calibration: Calibration, branch: Branch | None, members: Mapping[str, int]
) -> PlannedRun:
  price = pricing.price(run, calibration, packed=members[run.run_id] > 1)
  if branch is not None:
    seconds = price.expected_seconds * (1 - branch.step / run.steps)
    price = msgspec.structs.replace(price, expected_seconds=seconds)
  planned = wanted.planned[run.run_id][0]
  return PlannedRun(
    **msgspec.structs.asdict(price),
    run_id=run.run_id,
    roles=wanted.roles(run.run_id),
    budget=planned.budget,
    overrides={**planned.overrides},
    trunk=branch or Branch(),
  )


def _price_groups(
  grouped: Sequence[Sequence[str]],
  runs: Sequence[PlannedRun],
  in_packs: Mapping[str, tuple[Run, int]],
  calibration: Calibration,
  compiled: set[str],
) -> tuple[Group, ...]:
  """Returns groups with their expected seconds. The first group that needs a program pays for its compilation.

  `in_packs` maps run ids to the run and the number of members of its pack. Adds the programs to `compiled`.
  """
  seconds = {run.run_id: run.expected_seconds for run in runs}
  groups = []
  for ids in grouped:
    needed = {programs.key(run.config, members) for run, members in (in_packs[i] for i in ids)} - compiled
    compiled |= needed
    expected = sum(seconds[run_id] for run_id in ids) + len(needed) * calibration.compile_seconds
    groups.append(Group(tuple(ids), expected))
  return tuple(groups)


def _price_target(targets: Sequence[Run], calibration: Calibration, compiled: set[str]) -> Price | None:
  """Returns the cost of the most expensive candidate for the target; the fit will choose among the candidates."""
  if not targets:
    return None
  prices = [(pricing.price(run, calibration), programs.key(run.config) in compiled) for run in targets]
  price, is_compiled = max(prices, key=lambda pair: pair[0].expected_seconds)
  seconds = price.expected_seconds + (0 if is_compiled else calibration.compile_seconds)
  return msgspec.structs.replace(price, expected_seconds=seconds)


def _totals(runs: Sequence[PlannedRun], groups: Sequence[Group], target: Price | None) -> Totals:
  priced: list[Price] = [*runs, *([target] if target else [])]
  return Totals(
    runs=len(priced),
    flops_6nd=sum(run.flops_6nd for run in priced),
    flops_exact=sum(run.flops_exact for run in priced),
    tokens=sum(run.tokens for run in priced),
    flops_6nd_shared=sum(run.flops_6nd * run.trunk.step / run.steps for run in runs),
    disk_bytes=sum(run.disk_bytes for run in priced),
    expected_seconds=sum(group.expected_seconds for group in groups) + (target.expected_seconds if target else 0.0),
  )
