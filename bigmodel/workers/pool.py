"""A pool of workers: processes that train a study's groups side by side, here or on a cluster."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from etils import epath

from bigmodel.config import require
from bigmodel.declarations import Value
from bigmodel.errors import Interrupted, UserError
from bigmodel.record import STATUSES
from bigmodel.train.display import Display, duration
from bigmodel.train.leases import PATIENCE, POLL_SECONDS, Leases
from bigmodel.train.run import Run, read_status
from bigmodel.train.stop import Stop
from bigmodel.workers import clusters
from bigmodel.workers.clusters import Place
from bigmodel.workers.groups import Group
from bigmodel.workers.worker import COMMAND

KINDS = ("local", "ray", "slurm")
RESTARTS = 10  # of a worker in a row, without progress of any run, after which it is given up
UNFIT = 69  # the exit code of a worker that found its machine unfit to train
UNFIT_SECONDS = 300.0  # wait before the cluster is asked for a machine in place of an unfit one
REPORT_SECONDS = 10.0  # between two progress reports


@dataclasses.dataclass(frozen=True)
class Workers:
  """The workers of `--workers=KIND:N`: processes on this machine, or on machines of a cluster."""

  kind: str
  count: int
  options: Mapping[str, Value] = dataclasses.field(default_factory=dict)  # for Ray's tasks or Slurm's jobs

  @classmethod
  def parse(cls, text: str, options: Sequence[str] = ()) -> "Workers":
    kind, _, count = text.partition(":")
    require(kind in KINDS, f"--workers: {text!r}; write local:N, ray:N or slurm:N, such as local:4")
    require(
      not count or (count.isascii() and count.isdigit() and len(count) < 7 and int(count) > 0),
      f"--workers: {text!r}; N is a positive integer below 1,000,000",
    )
    require(bool(count) or kind == "local", f"--workers: {text!r}; give the number of workers, such as {kind}:4")
    return cls(kind, int(count) if count else len(os.sched_getaffinity(0)), clusters.parse_options(kind, options))

  @property
  def machines(self) -> int:
    """How many machines like this one the workers use: on a cluster, one each."""
    return 1 if self.kind == "local" else self.count


class Pool:
  """Workers that train lists of groups. They start with the first list, restart when they die, and stop at exit."""

  def __init__(self, workers: Workers, command: Sequence[str], workdir: epath.Path, display: Display, stop: Stop):
    self._workers, self._command = workers, command
    self._workdir, self._display, self._stop = workdir, display, stop
    self._slots: list[_Slot] = []
    self._has_started = False

  def train(self, groups: Sequence[Group], runs: Mapping[str, Run]) -> None:
    """Trains these groups, and returns when all have ended."""
    watch = _Watch(groups, runs, Leases(self._workdir / "leases", COMMAND), self._display)
    for slot in self._slots:
      slot.forgive()
    while watch.look():
      if self._stop.requested():
        raise Interrupted("stopped; the state of the runs is saved")
      self._keep_running(watch)
      time.sleep(POLL_SECONDS)

  def _keep_running(self, watch: "_Watch") -> None:
    """Starts workers, at most one per group that is left, and gives up on a worker that keeps dying."""
    if not self._has_started:
      self._slots = [_Slot(place) for place in _places(self._workers, self._command, self._workdir)]
      self._has_started = True
    running = sum(slot.is_running() for slot in self._slots)
    for slot in [*self._slots]:
      try:
        running += slot.keep_running(watch.progress, wanted=running < watch.left)
      except RuntimeError as error:
        self._slots.remove(slot)
        if not self._slots:
          raise
        self._display.say(f"{error}; {len(self._slots)} workers continue")

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      if kind is None:
        _wait(self._slots, 30)  # workers exit by themselves once everything has ended
    finally:
      for slot in self._slots:
        slot.stop()
      for slot in _wait(self._slots, 60):
        slot.kill()


def _wait(slots: Sequence["_Slot"], seconds: float) -> list["_Slot"]:
  """Waits up to `seconds` for the workers to exit; returns those that still run."""
  until, left = time.monotonic() + seconds, list(slots)
  while (left := [slot for slot in left if slot.is_running()]) and time.monotonic() < until:
    time.sleep(POLL_SECONDS / 5)
  return left


def _places(workers: Workers, command: Sequence[str], workdir: epath.Path) -> Sequence[Place]:
  if workers.kind != "local":
    commands = [[*command, f"--worker={workers.kind}-{i}"] for i in range(workers.count)]
    return clusters.places(workers.kind, commands, workers.options, workdir / "logs" / workers.kind)
  import jax

  require(
    workers.count == 1 or jax.default_backend() == "cpu",
    f"--workers: {workers.count} processes cannot share this machine's {jax.default_backend()}; use local:1",
  )
  cores = sorted(os.sched_getaffinity(0))
  share = max(1, len(cores) // workers.count)

  def cores_of(worker: int) -> str:
    return ",".join(str(cores[(worker * share + k) % len(cores)]) for k in range(share))

  return [_Process([*command, f"--worker=local-{i}@{cores_of(i)}"]) for i in range(workers.count)]


class _Process:
  """A worker as a process on this machine."""

  log = "above"

  def __init__(self, command: list[str]):
    self._command = command

  def start(self) -> None:
    self._process = subprocess.Popen(self._command, start_new_session=True, stdout=subprocess.DEVNULL)

  def poll(self) -> int | None:
    return self._process.poll()

  def stop(self) -> None:
    self._process.send_signal(signal.SIGTERM)

  def kill(self) -> None:
    self._process.kill()


class _Slot:
  """Starts the worker of one place, and restarts it when it dies or exits too early."""

  def __init__(self, place: Place):
    self._place = place
    self._is_started = False
    self._tries = 0  # starts since the study last made progress
    self._progress: tuple[int, int] | None = None  # progress of the study when the worker last died
    self._not_before = 0.0  # time before which the worker is not restarted

  def keep_running(self, progress: tuple[int, int], wanted: bool = True) -> bool:
    """Starts the worker if it does not run and is wanted; returns whether it was started.

    Raises `RuntimeError` if the worker keeps dying while no run makes progress, or found this machine unfit. On a
    cluster, an unfit machine is replaced after `UNFIT_SECONDS`.
    """
    if self._is_started:
      code = self._place.poll()
      if code is None:
        return False
      self._is_started = False
      self._note_exit(code, progress)
    if not wanted or time.monotonic() < self._not_before:
      return False
    self._place.start()
    self._is_started = True
    return True

  def _note_exit(self, code: int, progress: tuple[int, int]) -> None:
    """Decides when a worker that exited may be restarted, or raises."""
    if code == 2:
      raise UserError(f"a worker rejected its input; its message is {self._place.log}")
    self._tries = self._tries + 1 if progress == self._progress else 1
    self._progress = progress
    if self._tries > RESTARTS:
      raise RuntimeError(f"a worker died {RESTARTS} times in a row, the last time with code {code}")
    self._not_before = time.monotonic() + min(30.0, 0.5 * 2 ** (self._tries - 1))
    if code == UNFIT:
      if isinstance(self._place, _Process):
        raise RuntimeError(f"a worker found this machine unfit to train; its message is {self._place.log}")
      self._not_before = time.monotonic() + UNFIT_SECONDS

  def forgive(self) -> None:
    """Resets the count of restarts, because a new list of groups begins."""
    self._tries = 0

  def is_running(self) -> bool:
    return self._is_started and self._place.poll() is None

  def stop(self) -> None:
    """Asks the worker to save its state and to exit."""
    if self.is_running():
      self._place.stop()

  def kill(self) -> None:
    self._place.kill()


class _Watch:
  """Follows the progress of all groups and reports it regularly."""

  def __init__(self, groups: Sequence[Group], runs: Mapping[str, Run], leases: Leases, display: Display):
    self._all = self._left = {group.name: group for group in groups}
    self._runs, self._leases = runs, leases
    for group in groups:
      if group.ended(runs):
        leases.mark_ended(group.name)
    self._total = sum(len(group.run_ids) for group in groups)
    self._display = display
    self._reported = self._stale_since = time.monotonic()
    self.progress = (0, 0)  # (runs that have ended, most steps seen since then in the runs under way)

  @property
  def left(self) -> int:
    """The number of groups that had not ended at the last call of `look`."""
    return len(self._left)

  def look(self) -> int:
    """Updates and returns the number of groups that have not ended."""
    marked = self._leases.ended()
    self._left = {name: group for name, group in self._all.items() if name not in marked}
    if self._left:
      self._stale_since = time.monotonic()
    else:  # all are marked as ended, so check that they have records
      self._left = {name: group for name, group in self._all.items() if not group.ended(self._runs)}
      if time.monotonic() - self._stale_since > PATIENCE:  # a record would be visible by now on any file system
        self._leases.forget_ended(self._left)
    ended = self._total - sum(len(group.run_ids) for group in self._left.values())
    self.progress = max(self.progress, (ended, 0))
    if time.monotonic() - self._reported > REPORT_SECONDS and self._left:
      self._reported = time.monotonic()
      self._report(ended)
    return len(self._left)

  def _report(self, ended: int) -> None:
    held = [self._left[name] for name in self._leases.claimed() & self._left.keys()]
    statuses = [read_status(self._runs[run_id].folder) for group in held for run_id in group.run_ids]
    self.progress = max(self.progress, (ended, sum(status.step for status in statuses)))
    running = sum(status.state not in STATUSES for status in statuses)  # held; their statuses may be seen late
    expected = sum(group.expected_seconds for group in self._left.values())
    self._display.say(
      f"{ended} of {self._total} runs have ended, {running} are under way, {duration(expected)} of work left"
    )
