"""One run's identity and folder: config.json, provenance.json, status.json and who may write there."""

import contextlib
import dataclasses
import datetime
import functools
import os
import signal
import sys
from collections.abc import Iterator, Mapping

import msgspec
from etils import epath

from bigmodel import hardware, record, train
from bigmodel.config import Config, difference, digest, flatten
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json, write_json
from bigmodel.parallel import hosts
from bigmodel.record import Branch
from bigmodel.train.configs import execution_fields, identity
from bigmodel.train.stop import StopRequest

NO_BRANCH = Branch()


@dataclasses.dataclass(frozen=True)
class Run:
  """A resolved config with the folder that it trains in."""

  config: Config
  folder: epath.Path
  study: str = ""
  provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)  # facts to note in provenance.json
  branch: Branch = NO_BRANCH

  @functools.cached_property
  def run_id(self) -> str:
    return run_id(self.config)

  @functools.cached_property
  def steps(self) -> int:
    return train.steps_of(self.config)


def run_id(config: Config) -> str:
  """The id of a resolved config: equal for runs that compute the same, on any mesh and with any logging."""
  return digest(identity(flatten(config)))[:12]


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def open_folder(run: Run) -> None:
  """Writes config.json into the run's folder. Raises `UserError`, with the difference, if another config is there."""
  check_folder(run)
  path = run.folder / "config.json"
  if not path.exists():
    write_json(path, flatten(run.config))


def check_folder(run: Run) -> None:
  """Raises `UserError` if the run's folder holds a run of another config, naming the difference, or a study."""
  path = run.folder / "config.json"
  if path.exists():
    changed = difference(identity(read_json(path)), identity(flatten(run.config)))
    if changed:
      raise UserError(f"{run.folder} holds a run of another config ({changed}); choose another --workdir")
  elif (run.folder / "study.json").exists():
    raise UserError(f"{run.folder} holds a study; choose another --workdir or use bigmodel study")


def write_provenance(run: Run) -> None:
  """Writes the facts about this execution of the run: when, where, with what command and versions."""
  path = run.folder / "provenance.json"
  started = read_json(path)["started_at"] if path.exists() else now()
  facts: JsonObject = {
    "run_id": run.run_id,
    "started_at": started,
    "config": execution_fields(flatten(run.config)),
    "command": sys.argv,
    "versions": record.versions(),
    "devices": hardware.describe(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    **run.provenance,
  }
  write_json(path, facts)


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
  """The progress of a run."""

  state: str  # waiting, running, interrupted, paused, or one of `record.STATUSES`
  step: int
  seconds: float  # of training so far
  seconds_left: float | None
  steps: int = 0  # to the end of the run
  updated_at: str = ""


WAITING = Status("waiting", 0, 0.0, None)


def write_status(run: Run, state: str, step: int, seconds: float, left: float | None = None) -> None:
  """Writes status.json; of several processes of one job, the first writes."""
  if hosts.is_first():
    status = Status(state, step, seconds, left, run.steps, now())
    write_json(run.folder / "status.json", msgspec.to_builtins(status))


def read_status(folder: epath.PathLike) -> Status:
  """The status of a run's folder; `WAITING` if nothing has been written yet."""
  path = epath.Path(folder) / "status.json"
  if not path.exists():
    return WAITING
  try:
    return msgspec.convert(read_json(path), Status)
  except (msgspec.ValidationError, UnicodeEncodeError) as error:
    raise UserError(f"{path}: is corrupt ({error}); delete it") from error


@contextlib.contextmanager
def interruptible() -> Iterator[StopRequest]:
  """Makes SIGTERM, SIGUSR2 (a batch system's warning) and Ctrl-C request a stop inside the `with` block.

  A second Ctrl-C stops at once.
  """
  stop = StopRequest()

  def handle(signum: int, frame: object) -> None:
    if stop.requested() and signum == signal.SIGINT:
      raise KeyboardInterrupt
    stop.request()

  old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
  try:
    yield stop
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
