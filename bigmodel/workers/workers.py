"""Workers: processes that train a study's groups of runs side by side, with the study's folder as their only state."""

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from bigmodel import record
from bigmodel.config import require
from bigmodel.data.pipeline import Datasets
from bigmodel.errors import CheckpointError, Interrupted, UserError
from bigmodel.parallel import hosts
from bigmodel.train.display import Display, duration
from bigmodel.train.run import Run, read_status
from bigmodel.train.stop import LOST, Stop
from bigmodel.workers import clusters, execute
from bigmodel.workers.failures import Failures
from bigmodel.workers.groups import Group
from bigmodel.workers.leases import PATIENCE, POLL_SECONDS, Lease, Leases, Turns, WhileHeld, can_be_in

log = logging.getLogger("bigmodel")
KINDS = ("local", "ray", "slurm")
PARENT = "parent"  # the worker that is the command itself
RESTARTS = 10  # in a row without progress of any run
UNFIT = 69  # the exit code of a worker that found its machine unfit to train
UNFIT_SECONDS = 300.0  # until its cluster is asked for another machine


@dataclasses.dataclass(frozen=True)
class Workers:
  """What `--workers=KIND:N` asks for: so many processes here, or on machines of a cluster."""

  kind: str
  count: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of Ray's tasks and Slurm's jobs

  @classmethod
  def parse(cls, text: str, options: Sequence[str] = ()) -> "Workers":
    kind, _, count = text.partition(":")
    require(kind in KINDS, f"--workers: {text!r}; write local:N, ray:N or slurm:N, such as local:4")
    require(not count or (count.isdigit() and int(count) > 0), f"--workers: {text!r}; N is a number of processes")
    require(bool(count) or kind == "local", f"--workers: {text!r}; say how many, such as {kind}:4")
    return cls(kind, int(count) if count else len(os.sched_getaffinity(0)), clusters.parse_options(kind, options))

  @property
  def machines(self) -> int:
    """How many times this machine's devices they have, as far as can be known here."""
    return 1 if self.kind == "local" else self.count


def work(
  worker: str,
  groups: Sequence[Group],
  runs: Mapping[str, Run],
  data: Datasets,
  workdir: epath.Path,
  display: Display,
  stop: Stop,
  patience: float = PATIENCE,
  leave_to_others: bool = False,
  failures: Failures | None = None,
) -> None:
  """Trains groups of runs that no other worker holds, until all have ended.

  With `leave_to_others` it ends before, where there is nothing to do here and two other workers stay. Who calls this
  for round after round gives `failures`, which is open. What fails is tried again, by another worker where there is
  one. Raises `UnfitWorker` where the machine is to blame. A worker of several hosts holds a lease as one: what its
  first process finds, all do.
  """
  by_name = {group.name: group for group in groups}
  leases = Leases(workdir / "leases", worker, patience)
  noted = failures or failures_of(workdir, worker, patience)

  def is_ready(name: str) -> bool:
    group = by_name[name]
    return _trunk_is_done(group, runs) and not noted.waits_for_others(name, lambda: group.not_ended(runs))

  turns = Turns(
    leases,
    list(by_name),
    ended=lambda name: by_name[name].ended(runs),
    ready=is_ready,
    shuffled=worker != PARENT,
  )
  lease: Lease | None = None
  waits, stale_since = False, time.monotonic()

  def look() -> tuple[str, float]:
    nonlocal lease, stale_since
    if stop.requested():
      return "stop", 0.0
    noted.require_fit()
    name, lease, wait = turns.next()
    if leave_to_others and not name and wait and noted.can_be_spared():
      return "leave", 0.0
    if name or wait:
      stale_since = time.monotonic()
    elif stale := [name for name, group in by_name.items() if not group.ended(runs)]:
      # All say that these have ended, and their records do not: they may be seen late.
      if time.monotonic() - stale_since > patience:
        turns.again(stale)
      return "", POLL_SECONDS
    return name, wait

  with contextlib.nullcontext() if failures else noted:
    while True:
      name, wait = hosts.first(look)
      if name == "stop":
        raise Interrupted("stopped between runs")
      if name == "leave" or (not name and not wait):
        return
      if not name:
        if not waits:
          display.say("waits for what other workers train, or trained when they were last seen")
        waits = True
        time.sleep(wait)
        continue
      waits = False
      held = lambda: lease is not None and lease.held()
      with lease or contextlib.nullcontext():
        own_stop = WhileHeld(stop, lease) if lease else stop
        try:
          execute.try_group(by_name[name], runs, data, display, own_stop, noted)
        except Interrupted:
          if hosts.first(held):
            raise
          display.say(f"{name}: {LOST}; this worker goes on with other runs")
        except CheckpointError:
          # One that was replaced while it wrote may have met what its successor removed.
          if hosts.several() or held():
            raise
          display.say(f"{name}: {LOST}; this worker goes on with other runs")


def failures_of(workdir: epath.Path, worker: str, patience: float = PATIENCE) -> Failures:
  """The failed attempts of a study as this worker sees them. Each of several commands in one folder has its own."""
  return Failures(workdir, f"{PARENT}-{os.getpid()}" if worker == PARENT else worker, patience)


@contextlib.contextmanager
def exclusive(workdir: epath.Path, what: str, stop: Stop) -> Iterator[None]:
  """Lets one command at a time do `what` in a study's folder.

  A job of several hosts, and one in an object store, is taken for the only command there.
  """
  if hosts.several() or not can_be_in(workdir):
    yield
    return
  leases, waits = Leases(workdir / "leases", PARENT), False
  while (lease := leases.claim(what)) is None:
    if stop.requested():
      raise Interrupted(f"stopped while another command was at the {what}")
    if not waits:
      log.warning("%s: waits for another command, which is at the %s or was when it was last seen", workdir, what)
    waits = True
    time.sleep(POLL_SECONDS)
  with lease:
    yield


def _trunk_is_done(group: Group, runs: Mapping[str, Run]) -> bool:
  """Have the trunks ended that leave this group's runs a checkpoint, or left it already?"""
  for run_id in group.run_ids:
    run = runs[run_id]
    trunk = runs.get(run.branch.trunk)
    if trunk and record.read(trunk.folder) is None and execute.waits(run):
      return False
  return True


class Pool:
  """Workers that train group after group: started with the first, again where they die, and ended at the end."""

  def __init__(self, workers: Workers, command: Sequence[str], workdir: epath.Path, display: Display, stop: Stop):
    self._start = lambda: [_Slot(place) for place in _places(workers, command, workdir)]
    self._workdir, self._display, self._stop = workdir, display, stop
    self._slots: list[_Slot] = []
    self._started = False

  def train(self, groups: Sequence[Group], runs: Mapping[str, Run]) -> None:
    """Until all of these have ended."""
    watch = _Watch(groups, runs, Leases(self._workdir / "leases", PARENT), self._display)
    for slot in self._slots:
      slot.forgive()
    while watch.look():
      if self._stop.requested():
        raise Interrupted("stopped; what was trained is saved")
      self._keep_going(watch)
      time.sleep(POLL_SECONDS)

  def _keep_going(self, watch: "_Watch") -> None:
    """Starts workers, no more than there are groups left; goes on without one that dies again and again."""
    if not self._started:
      self._slots, self._started = self._start(), True
    running = sum(slot.runs() for slot in self._slots)
    for slot in [*self._slots]:
      try:
        running += slot.keep_going(watch.progress, wanted=running < watch.left)
      except RuntimeError as error:
        self._slots.remove(slot)
        if not self._slots:
          raise
        self._display.say(f"{error}; {len(self._slots)} workers go on")

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      if kind is None:
        _wait(self._slots, 30)  # they see that all has ended, too
    finally:
      for slot in self._slots:
        slot.stop()
      for slot in _wait(self._slots, 60):
        slot.kill()


def _wait(slots: Sequence["_Slot"], seconds: float) -> list["_Slot"]:
  """For the workers to end by themselves; those that have not."""
  until, left = time.monotonic() + seconds, list(slots)
  while (left := [slot for slot in left if slot.runs()]) and time.monotonic() < until:
    time.sleep(POLL_SECONDS / 5)
  return left


def _places(workers: Workers, command: Sequence[str], workdir: epath.Path) -> list[Any]:
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
  own = lambda i: ",".join(str(cores[(i * share + k) % len(cores)]) for k in range(share))
  return [_Process([*command, f"--worker=local-{i}@{own(i)}"]) for i in range(workers.count)]


class _Process:
  """A place (see `clusters`) on this machine."""

  said = "above"

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
  """A worker that is started again when it dies, or ended too early."""

  def __init__(self, place: Any):
    self._place = place
    self._runs = False
    self._tries = 0
    self._before: Any = None
    self._next = 0.0

  def keep_going(self, progress: Any, wanted: bool = True) -> bool:
    """Starts the worker where none runs, if it is wanted; returns whether it did.

    Gives up, with a `RuntimeError`, where it dies again and again while no run gets any further, and where this
    machine is unfit; a cluster is asked for another machine after a while.
    """
    if self._runs:
      code = self._place.poll()
      if code is None:
        return False
      if code == 2:
        raise UserError(f"a worker refused its input; what it said is {self._place.said}")
      self._runs = False
      self._tries = self._tries + 1 if progress == self._before else 1
      self._before = progress
      if self._tries > RESTARTS:
        raise RuntimeError(f"a worker died {RESTARTS} times in a row, the last time with code {code}")
      self._next = time.monotonic() + min(30.0, 0.5 * 2 ** (self._tries - 1))
      if code == UNFIT:
        if isinstance(self._place, _Process):
          raise RuntimeError(f"a worker found this machine unfit to train; why is {self._place.said}")
        self._next = time.monotonic() + UNFIT_SECONDS
    if not wanted or time.monotonic() < self._next:
      return False
    self._place.start()
    self._runs = True
    return True

  def forgive(self) -> None:
    """Forgets how often it died: what comes now is other work."""
    self._tries = 0

  def runs(self) -> bool:
    return self._runs and self._place.poll() is None

  def stop(self) -> None:
    """Asks it to save what it has, and to end."""
    if self.runs():
      self._place.stop()

  def kill(self) -> None:
    self._place.kill()


class _Watch:
  """How far all runs are, said now and then."""

  def __init__(self, groups: Sequence[Group], runs: Mapping[str, Run], leases: Leases, display: Display):
    self._all = self._left = {group.name: group for group in groups}
    self._runs, self._leases = runs, leases
    for name in self._all:
      if self._has_ended(name):
        leases.mark_ended(name)
    self._total = sum(len(group.run_ids) for group in groups)
    self._display = display
    self._said = self._stale_since = time.monotonic()
    self.progress = (0, 0)  # runs that have ended, and the most steps that the others came to since

  @property
  def left(self) -> int:
    """The number of groups that had not ended at the last look."""
    return len(self._left)

  def look(self) -> int:
    """The number of groups that have not ended."""
    marked = self._leases.ended()
    self._left = {name: group for name, group in self._all.items() if name not in marked}
    if self._left:
      self._stale_since = time.monotonic()
    else:  # all say so: do their records?
      stale = [name for name in self._all if not self._has_ended(name)]
      self._left = {name: self._all[name] for name in stale}
      if time.monotonic() - self._stale_since > PATIENCE:  # no file system is that late
        self._leases.forget_ended(stale)
    ended = self._total - sum(len(group.run_ids) for group in self._left.values())
    self.progress = max(self.progress, (ended, 0))
    if time.monotonic() - self._said > 10 and self._left:
      self._said = time.monotonic()
      held = [self._left[name] for name in self._leases.claimed() & self._left.keys()]
      told = [read_status(self._runs[run_id].folder) for group in held for run_id in group.run_ids]
      self.progress = max(self.progress, (ended, sum(status.step for status in told)))
      running = sum(status.state == "running" for status in told)
      text = f"{ended} of {self._total} runs have ended, {running} are under way"
      expected = sum(group.expected_seconds for group in self._left.values())
      self._display.say(f"{text}, {duration(expected)} of work left")
    return len(self._left)

  def _has_ended(self, name: str) -> bool:
    return self._all[name].ended(self._runs)


def command_of_workers(argv: Sequence[str]) -> list[str]:
  """This command as a worker of its study runs it."""
  kept, words = [], iter(argv)
  for word in words:
    name, _, value = word.partition("=")
    if name in ("--workers", "--worker-options"):
      _ = value or next(words, None)
    elif name not in ("--json", "--retry", "--retry-failed"):
      kept.append(word)
  return [sys.executable, "-m", "bigmodel.cli", *kept]


def settle(worker: str) -> str:
  """The worker's own name, of NAME[@CORES]; keeps this process to those cores. Before JAX has any devices."""
  name, _, cores = worker.partition("@")
  if cores:
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
  return name
