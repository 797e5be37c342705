"""Prolongs a run: the same folder, with a later horizon.

That gives the same bits as a whole run of the new length only where no earlier step depends on the horizon: under a
schedule without an end, and with the same number of warm-up steps.
"""

from bigmodel import optim, record, train
from bigmodel.config import Config, flatten, require
from bigmodel.files import read_json, write_json
from bigmodel.optim.fields import FIELDS
from bigmodel.record import Record
from bigmodel.train.configs import identity, read_config
from bigmodel.train.results import set_record_aside
from bigmodel.train.run import Run, check_folder

ENDLESS = ("constant", "inverse_sqrt")  # schedules that do not depend on the horizon
HORIZON = ("train.tokens", "train.steps", "optim.warmup")  # fields in which a prolonged run may differ


def check(run: Run) -> None:
  """Raises `UserError` if the run's folder holds a run of another config, or a shorter one that cannot be prolonged."""
  if _has_other_horizon(run):
    _check_horizon(run)
  else:
    check_folder(run)


def ended_record(run: Run) -> Record | None:
  """The record in the run's folder, unless it is that of a shorter run."""
  return None if _has_other_horizon(run) else record.read(run.folder)


def begin(run: Run) -> None:
  """Makes the folder of a shorter run that of this one: its record moves to `attempts/`, its checkpoints stay."""
  check(run)
  if _has_other_horizon(run):
    if record.read(run.folder) is not None:  # first: if the process is killed here, either command resumes
      set_record_aside(run.folder)
    write_json(run.folder / "config.json", flatten(run.config))


def _has_other_horizon(run: Run) -> bool:
  """Whether the folder holds a run that differs from this one, but in nothing besides its horizon."""
  path = run.folder / "config.json"
  if not path.exists():
    return False
  old, new = identity(read_json(path)), identity(flatten(run.config))
  names = {name for name in old.keys() | new.keys() if _plain(old.get(name)) != _plain(new.get(name))}
  return bool(names) and names <= {*HORIZON} and bool(names & {"train.tokens", "train.steps"})


def _check_horizon(run: Run) -> None:
  old, new, schedule = read_config(run.folder), run.config, run.config.optim.schedule
  before, after = train.steps_of(old), run.steps
  here, instead = f"{run.folder} holds this run with {before:,} steps", "choose another --workdir"
  require(after > before, f"{here}, not {after:,}: a run can be prolonged, not shortened; {instead}")
  require(
    schedule in ENDLESS,
    f"{here}, not {after:,}: the learning rate of its {schedule} schedule depends on the number of steps; {instead}, or"
    f" train with config.optim.schedule=constant{_unread(new)}, which can be prolonged",
  )
  require(not new.train.stages, f"{here}, not {after:,}: a run with config.train.stages cannot be prolonged; {instead}")
  warmups = [int(optim.hyperparameters(config, steps).warmup) for config, steps in ((old, before), (new, after))]
  require(
    warmups[0] == warmups[1],
    f"{here} and a warm-up of {warmups[0]:,} steps, not {warmups[1]:,}: to prolong it, set"
    f" --config.optim.warmup={old.optim.warmup * before / after:.6g}",
  )
  ended = record.read(run.folder)
  require(
    ended is None or ended.finished, f"{here}, which {ended.status if ended else ''}: it cannot be prolonged; {instead}"
  )


def _unread(config: Config) -> str:
  """The settings of a schedule with an end that have to go back to their defaults under a constant one."""
  defaults = {name: FIELDS[name].default for name in ("decay", "final")}
  return "".join(f" and optim.{name}={default}" for name, default in defaults.items() if config.optim[name] != default)


def _plain(value: object) -> object:
  return list(value) if isinstance(value, tuple) else value  # JSON has no tuples
