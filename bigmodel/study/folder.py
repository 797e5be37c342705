"""A study's folder: study.json, which identifies the study, and the records and the progress of its runs."""

from collections.abc import Sequence

import msgspec
from etils import epath

from bigmodel import record
from bigmodel.config import difference
from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.files import read_json
from bigmodel.record import Record
from bigmodel.study import plan as plans
from bigmodel.study.plan import Plan
from bigmodel.train import advice
from bigmodel.train.configs import identity, read_config
from bigmodel.train.results import as_measured
from bigmodel.train.run import Status, read_status

Trial = tuple[dict[str, Value], float | None]  # the overrides of a run, and its loss if it finished


class About(msgspec.Struct, frozen=True):
  """The contents of study.json. Laws and schedules may be added later; the other fields cannot change."""

  name: str
  question: str
  laws: tuple[str, ...]
  measure: str
  convention: str
  target_flops: float | None
  config: dict[str, Value]  # flat
  schedules: tuple[str, ...] = ()

  def fixed(self) -> dict[str, object]:
    """Returns the fields that cannot change while a folder holds the study."""
    names = ("name", "convention", "target_flops", "measure")
    return {**{name: getattr(self, name) for name in names}, **identity(self.config)}


def read_about(folder: epath.PathLike) -> About:
  """Reads study.json of a study's folder."""
  path = epath.Path(folder) / "study.json"
  try:
    return msgspec.convert(read_json(path), About)
  except msgspec.ValidationError as error:
    raise UserError(f"{path}: is corrupt ({error}); restore it") from error


def check_study(folder: epath.PathLike, about: About) -> None:
  """Raises `UserError` if the folder holds a run or another study, naming the difference."""
  folder = epath.Path(folder)
  if (folder / "config.json").exists():
    raise UserError(f"{folder} holds a run; choose another --workdir")
  if not (folder / "study.json").exists():
    return
  changed = difference(read_about(folder).fixed(), about.fixed())
  if changed:
    raise UserError(f"{folder} holds another study ({changed}); choose another --workdir")


def check_runs(plan: Plan, ids: set[str], folder: epath.PathLike) -> None:
  """Raises `UserError` if the design lacks fitted runs of the plan. Runs for noise and scans may change."""
  lost = [run for run in plan.runs if run.run_id not in ids and "fit" in run.roles]
  if lost:
    raise UserError(
      f"{folder}: the study no longer has {len(lost)} of its runs, such as {lost[0].run_id} ({lost[0].overrides});"
      " a study's runs are added to, not changed: choose another --workdir or, if a"
      " FILE.py that they use was changed, restore it"
    )


def of_role(workdir: epath.PathLike, role: str) -> list[Record]:
  """Returns the records of runs with a role, in the order of the plan, with the study's measure as their loss."""
  runs = [run for run in plans.planned_runs(workdir) if role in run.roles]
  measure = read_about(workdir).measure if runs else "loss"
  records = [record.read(epath.Path(workdir) / "runs" / run.run_id) for run in runs]
  return [as_measured(one, measure) for one in records if one is not None]


def why_none_finished(workdir: epath.PathLike) -> str:
  """Returns a sentence about a study all of whose runs diverged or failed, and what to change; "" for other studies."""
  folders = [epath.Path(workdir) / "runs" / run.run_id for run in plans.planned_runs(workdir)]
  ended = {folder: record.read(folder) for folder in folders}
  runs = {folder: run for folder, run in ended.items() if run is not None and run.status in ("diverged", "failed")}
  if not runs or len(runs) < len(ended):
    return ""
  diverged = {folder: run for folder, run in runs.items() if run.status == "diverged"}
  folder, run = min((diverged or runs).items(), key=lambda pair: pair[1].learning_rate)
  what = "diverged" if len(diverged) == len(runs) else "diverged or failed" if diverged else "failed"
  change = f"; {advice.after_divergence(read_config(folder), run)}" if diverged else ""
  return f"{workdir}: all {len(runs)} runs {what}, such as {run.run_id}: {run.error or run.status}{change}"


def trials(workdir: epath.PathLike, plan: Plan, measure: str) -> list[Trial]:
  """Returns the overrides and the loss of each run of a plan, in its order."""
  ended = [record.read(epath.Path(workdir) / "runs" / run.run_id) for run in plan.runs]
  losses = [as_measured(one, measure).loss_eval if one and one.finished else None for one in ended]
  return [(run.overrides, loss) for run, loss in zip(plan.runs, losses, strict=True)]


class RunStatus(Status, frozen=True, kw_only=True):
  """The progress of a run, and its loss or error once it has ended."""

  run_id: str
  loss_eval: float | None
  error: str


def status(workdir: epath.PathLike) -> list[RunStatus]:
  """Returns the status of every run in a study's folder, or of the only run in a run's folder."""
  workdir = epath.Path(workdir)
  if (workdir / "config.json").exists():
    folders = [workdir]
  elif (workdir / "study.json").exists():
    read_about(workdir)  # raises where it is corrupt
    folders = [workdir / "runs" / run.run_id for run in plans.planned_runs(workdir)]
    folders += [path for path in sorted((workdir / "runs").glob("*")) if path not in folders]
  else:
    raise UserError(f"--workdir: {workdir} holds neither a study nor a run")
  return [_status_of(folder) for folder in folders]


def _status_of(folder: epath.Path) -> RunStatus:
  ended = record.read(folder)
  return RunStatus(
    **msgspec.structs.asdict(read_status(folder)),
    run_id=folder.name,
    loss_eval=ended.loss_eval if ended else None,
    error=ended.error if ended else "",
  )


class Failure(msgspec.Struct, frozen=True):
  """A run that failed or diverged, and why."""

  run_id: str
  error: str


class Progress(msgspec.Struct, frozen=True):
  """The number of runs of a study in each state, and the seconds spent, planned and left."""

  states: dict[str, int]
  failures: tuple[Failure, ...]
  seconds: float
  expected_seconds: float
  expected_seconds_of_done: float
  seconds_left: float


def progress(workdir: epath.PathLike, rows: Sequence[RunStatus]) -> Progress:
  """Returns the progress of a study, given the `rows` of its `status`."""
  expected = {run.run_id: run.expected_seconds for run in plans.planned_runs(workdir)}
  states = [row.state for row in rows]
  done = sum(expected.get(row.run_id, 0.0) * _share_done(row) for row in rows)
  spent = sum(row.seconds for row in rows)
  # The estimate assumes the speed so far, and as many concurrent runs as now.
  pace = spent / done if done else 1.0
  left = (sum(expected.values()) - done) * pace / max(1, states.count("running"))
  return Progress(
    states={state: states.count(state) for state in dict.fromkeys(states)},
    failures=tuple(Failure(row.run_id, row.error or row.state) for row in rows if row.state in ("failed", "diverged")),
    seconds=spent,
    expected_seconds=sum(expected.values()),
    expected_seconds_of_done=done,
    seconds_left=max(0.0, left),
  )


def _share_done(row: RunStatus) -> float:
  return 1.0 if row.state in record.STATUSES else row.step / max(1, row.steps)
