"""One run's identity and folder: config.json, provenance.json, status.json and who may write there."""

import contextlib
import dataclasses
import datetime
import functools
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from bigmodel import hardware, record, train
from bigmodel.config import Config, difference, digest, flatten
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.parallel import hosts
from bigmodel.train.configs import carried_out, identity
from bigmodel.train.stop import StopRequest


@dataclasses.dataclass(frozen=True)
class Branch:
  """Where a run leaves another one, with which it has its first steps in common."""

  trunk: str  # run id
  step: int


@dataclasses.dataclass(frozen=True)
class Run:
  """A resolved config with the folder that it trains in."""

  config: Config
  folder: epath.Path
  study: str = ""
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
  branch: Branch | None = None

  @functools.cached_property
  def run_id(self) -> str:
    return run_id(self.config)

  @functools.cached_property
  def steps(self) -> int:
    return train.steps_of(self.config)


def run_id(config: Config) -> str:
  """The same id is the same run, on whatever mesh and with whatever logging."""
  return digest(identity(flatten(config)))[:12]


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def open_folder(run: Run) -> None:
  """Claims the folder for this run; refuses one that holds another config, with the difference."""
  path = run.folder / "config.json"
  mine = flatten(run.config)
  if path.exists():
    changed = difference(identity(read_json(path)), identity(mine))
    if changed:
      raise UserError(f"{run.folder} holds a run of another config ({changed}); choose another --workdir")
    return
  if (run.folder / "study.json").exists():
    raise UserError(f"{run.folder} holds a study; choose another --workdir or use bigmodel study")
  write_json(path, mine)


def write_provenance(run: Run) -> None:
  """What is true of this carrying-out of the run, and not of the run."""
  path = run.folder / "provenance.json"
  started = read_json(path)["started_at"] if path.exists() else now()
  facts = {
    "run_id": run.run_id,
    "started_at": started,
    "config": carried_out(flatten(run.config)),
    "command": sys.argv,
    "versions": record.versions(),
    "devices": hardware.describe(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    **run.provenance,
  }
  write_json(path, facts)


def write_status(run: Run, state: str, step: int, seconds: float, left: float | None = None) -> None:
  """Of the processes of a job the first writes. `state` is running, interrupted, paused, or how the run ended."""
  facts = {"state": state, "step": step, "steps": run.steps, "seconds": seconds, "seconds_left": left}
  if hosts.is_first():
    write_json(run.folder / "status.json", facts | {"updated_at": now()})


def read_status(folder: epath.PathLike) -> dict[str, Any]:
  path = epath.Path(folder) / "status.json"
  return read_json(path) if path.exists() else {"state": "waiting", "step": 0, "seconds": 0.0, "seconds_left": None}


@contextlib.contextmanager
def interruptible() -> Iterator[StopRequest]:
  """Within it SIGTERM, SIGUSR2 (a batch system's warning) and Ctrl-C request a stop.

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
