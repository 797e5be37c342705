"""A worker trains the groups of runs that no other worker holds. Workers share nothing but the study's folder."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from bigmodel import record
from bigmodel.data.pipeline import Datasets
from bigmodel.errors import CheckpointError, Interrupted, UserError
from bigmodel.parallel import hosts
from bigmodel.train.display import Display
from bigmodel.train.leases import PATIENCE, POLL_SECONDS, Lease, Leases, Turns, WhileHeld, can_be_in
from bigmodel.train.run import Run
from bigmodel.train.stop import LOST, Stop
from bigmodel.workers import execute
from bigmodel.workers.failures import Failures
from bigmodel.workers.groups import Group

log = logging.getLogger("bigmodel")
COMMAND = "parent"  # the name of the worker inside the user's command


class Worker:
  """Trains groups of a study in this process. In a job of several hosts, the first process holds the leases."""

  def __init__(
    self, name: str, workdir: epath.Path, data: Datasets, display: Display, stop: Stop, patience: float = PATIENCE
  ):
    self.name, self.workdir, self.display, self.stop = name, workdir, display, stop
    self._data, self._patience = data, patience
    self._failures: Failures | None = None  # None outside of `present`

  @contextlib.contextmanager
  def present(self) -> Iterator["Worker"]:
    """Shows other workers that this one is alive, also between the rounds of an adaptive design."""
    # Several commands may run in one folder, and the failures of each are counted separately.
    name = f"{COMMAND}-{os.getpid()}" if self.name == COMMAND else self.name
    with Failures(self.workdir, name, self._patience) as self._failures:
      try:
        yield self
      finally:
        self._failures = None

  def train(self, groups: Sequence[Group], runs: Mapping[str, Run], leave_to_others: bool = False) -> None:
    """Trains the groups that no other worker holds, until all have ended.

    With `leave_to_others` it returns as soon as this worker is idle and two other workers stay. A group that fails is
    retried, by another worker if there is one. Raises `UnfitWorker` if this machine causes the failures.
    """
    if not can_be_in(self.workdir):  # an object store, which workers cannot share
      execute.run_groups(groups, runs, self._data, self.display, self.stop, self.workdir)
      return
    with contextlib.nullcontext() if self._failures else self.present():
      _Session(self, groups, runs, leave_to_others).run()


class _Session:
  """One call of `Worker.train`."""

  def __init__(self, worker: Worker, groups: Sequence[Group], runs: Mapping[str, Run], leave_to_others: bool):
    self._worker, self._runs, self._leave_to_others = worker, runs, leave_to_others
    self._groups = {group.name: group for group in groups}
    assert worker._failures is not None
    self._failures, self._patience = worker._failures, worker._patience
    leases = Leases(worker.workdir / "leases", worker.name, self._patience)
    shuffled = worker.name != COMMAND
    self._turns = Turns(leases, list(self._groups), self._has_ended, self._is_ready, shuffled)
    self._lease: Lease | None = None  # held by the first process of the worker
    self._is_waiting, self._stale_since = False, time.monotonic()

  def run(self) -> None:
    while True:
      action, name, seconds = hosts.first(self._next)
      if action == "stop":
        raise Interrupted("stopped between runs")
      if action == "leave":
        return
      if action == "wait":
        self._wait(seconds)
      else:
        self._is_waiting = False
        self._train(self._groups[name])

  def _has_ended(self, name: str) -> bool:
    return self._groups[name].ended(self._runs)

  def _is_ready(self, name: str) -> bool:
    group = self._groups[name]
    waits = self._failures.waits_for_others(name, lambda: group.not_ended(self._runs))
    return _trunk_is_done(group, self._runs) and not waits

  def _next(self) -> tuple[str, str, float]:
    """Returns (action, group, seconds): "stop", "leave", "wait" for some seconds, or "train" a group."""
    if self._worker.stop.requested():
      return "stop", "", 0.0
    self._failures.require_fit()
    turn = self._turns.next()
    self._lease = turn.lease
    if turn.name or turn.wait:
      self._stale_since = time.monotonic()
    if turn.name:
      return "train", turn.name, 0.0
    if turn.wait:
      leaves = self._leave_to_others and self._failures.can_be_spared()
      return ("leave", "", 0.0) if leaves else ("wait", "", turn.wait)
    return self._all_are_marked()

  def _all_are_marked(self) -> tuple[str, str, float]:
    """Returns the action if all groups are marked as ended: leave, or wait for records that are not visible yet."""
    stale = [name for name in self._groups if not self._has_ended(name)]
    if not stale:
      return "leave", "", 0.0
    if time.monotonic() - self._stale_since > self._patience:
      self._turns.again(stale)
    return "wait", "", POLL_SECONDS

  def _wait(self, seconds: float) -> None:
    if not self._is_waiting:
      self._worker.display.say("waiting for groups that other workers hold or have not released")
    self._is_waiting = True
    time.sleep(seconds)

  def _train(self, group: Group) -> None:
    worker, lease = self._worker, self._lease
    stop = WhileHeld(worker.stop, lease) if lease else worker.stop
    with lease or contextlib.nullcontext():
      try:
        execute.try_group(group, self._runs, worker._data, worker.display, stop, self._failures)
      except Interrupted:
        if hosts.first(self._holds_lease):
          raise
        worker.display.say(f"{group.name}: {LOST}; this worker continues with other runs")
      except CheckpointError:
        # The next holder of the lease may have removed files while this worker was writing.
        if hosts.several() or self._holds_lease():
          raise
        worker.display.say(f"{group.name}: {LOST}; this worker continues with other runs")

  def _holds_lease(self) -> bool:
    return self._lease is not None and self._lease.held()


def _trunk_is_done(group: Group, runs: Mapping[str, Run]) -> bool:
  """Whether the trunks of the group's runs have ended or have already left the checkpoints to branch from."""
  for run_id in group.run_ids:
    run = runs[run_id]
    trunk = runs.get(run.branch.trunk)
    if trunk and record.read(trunk.folder) is None and execute.waits(run):
      return False
  return True


@contextlib.contextmanager
def exclusive(workdir: epath.Path, what: str, stop: Stop) -> Iterator[None]:
  """Lets only one command at a time work on `what`, such as the plan, in a study's folder.

  A job of several hosts, and a command in an object store, is assumed to be the only command there.
  """
  if hosts.several() or not can_be_in(workdir):
    yield
    return
  leases, is_waiting = Leases(workdir / "leases", COMMAND), False
  while (lease := leases.claim(what)) is None:
    if stop.requested():
      raise Interrupted(f"stopped while waiting for another command to finish the {what}")
    if not is_waiting:
      log.warning("%s: waiting for another command to finish the %s", workdir, what)
    is_waiting = True
    time.sleep(POLL_SECONDS)
  with lease:
    yield


def command_of_workers(argv: Sequence[str]) -> list[str]:
  """Returns the command line of a worker for the study that the command line `argv` runs."""
  kept, words = [], iter(argv)
  for word in words:
    name, _, value = word.partition("=")
    if name in ("--workers", "--worker-options"):
      _ = value or next(words, None)
    elif name not in ("--json", "--retry", "--retry-failed"):
      kept.append(word)
  return [sys.executable, "-m", "bigmodel.cli", *kept]


def settle(worker: str) -> str:
  """Returns the name in NAME[@CORES] and binds this process to the cores, before JAX has any devices."""
  name, _, cores = worker.partition("@")
  if cores:
    try:
      os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    except (ValueError, OverflowError, OSError) as error:
      available = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
      raise UserError(f"--worker: {worker!r}: {cores!r} are not cores of this machine ({available})") from error
  return name
