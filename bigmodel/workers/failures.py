"""Failed attempts at a study's runs: who retries, which runs have failed for good, and which worker is unfit.

`failures/GROUP.json` in a study's folder lists the attempts at a group of runs that ended in an exception. The holder
of the group's lease writes it. A group is tried twice, the second time by another worker if there is one. Then each of
its runs is tried alone, because a run may fit into memory or work when it trains alone. A run that fails alone twice
has failed.
"""

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import jax
import numpy as np
from etils import epath

from bigmodel import processes
from bigmodel.errors import UnfitWorker, UserError
from bigmodel.files import read_json, remove, sha256_text, write_json, write_text
from bigmodel.parallel import hosts
from bigmodel.record import Record
from bigmodel.train.leases import PATIENCE

TRIES = 2  # attempts at a group, and then at each of its runs alone
IN_A_ROW = 2  # a worker stops after failing with this many groups that succeed on other workers
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "MemoryError")


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One attempt that ended in an exception."""

  run_ids: tuple[str, ...]  # trained together
  worker: str
  error: str

  @property
  def out_of_memory(self) -> bool:
    return any(text in self.error for text in OUT_OF_MEMORY)


def describe(error: BaseException) -> str:
  """Returns the type of an exception and the first line of its message."""
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0] if lines else ''}"


class Failures:
  """The failed attempts of one study, as one worker sees them, and which other workers are alive.

  Inside a `with` statement a thread keeps rewriting a file that shows the other workers that this one is alive. A
  worker whose file did not change for `patience` seconds of this worker's clock is considered dead.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    worker: str,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
  ):
    self.folder = epath.Path(workdir) / "failures"
    self.worker = f"{worker}@{socket.gethostname()}"
    self._patience, self._clock = patience, clock
    self._failed_here: set[str] = set()  # names of groups
    # Groups that failed here since this worker last succeeded, with a function: has the group succeeded since?
    self._in_a_row: dict[str, Callable[[], bool]] = {}
    self._seen: dict[str, tuple[str, float, bool]] = {}  # file -> (text, since when, was it seen to change)
    self._beats, self._closed, self._lock = 0, threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._keep_beating, name="presence", daemon=True)

  def of(self, group: str) -> list[Attempt]:
    path = self.folder / f"{group}.json"
    rows = read_json(path) if path.exists() else []
    return [Attempt(tuple(row["run_ids"]), row["worker"], row["error"]) for row in rows]

  def add(self, group: str, run_ids: Sequence[str], error: BaseException, has_succeeded: Callable[[], bool]) -> None:
    """Records a failed attempt; `has_succeeded` is called later to see whether the group succeeded after all."""
    attempts = [*self.of(group), Attempt(tuple(run_ids), self.worker, describe(error))]
    write_json(self.folder / f"{group}.json", [dataclasses.asdict(attempt) for attempt in attempts])
    self._failed_here.add(group)
    self._in_a_row.setdefault(group, has_succeeded)

  def succeeded(self, group: str) -> None:
    """Records that this worker trained a group to its end and none of its runs failed."""
    self._failed_here.discard(group)
    self._in_a_row.clear()

  def waits_for_others(self, group: str, run_ids: Callable[[], Collection[str]]) -> bool:
    """Whether to leave these runs to other workers: all failed last on this one, and another worker is alive."""
    if group not in self._failed_here or not self._beats:
      return False
    last = {run_id: attempt.worker for attempt in self.of(group) for run_id in attempt.run_ids}
    return all(last.get(run_id) == self.worker for run_id in run_ids()) and bool(self._others())

  def can_be_spared(self) -> bool:
    """Whether two other workers stay: one to train the only group left, and one to retry it if it fails."""
    alive = [name for name, changed in self._others().items() if changed]
    return sum(name < self._presence.name for name in alive) >= 2

  def require_fit(self) -> None:
    """Raises `UnfitWorker` if `IN_A_ROW` groups failed here one after another and succeeded on other workers."""
    elsewhere = [group for group, has_succeeded in self._in_a_row.items() if has_succeeded()]
    if len(elsewhere) >= IN_A_ROW:
      raise UnfitWorker(
        f"{self.worker} stops: {', '.join(elsewhere)} failed here one after another and succeeded on other workers"
        f" (the last error here: {self._last_error(elsewhere[-1])}); check this machine"
      )

  def _last_error(self, group: str) -> str:
    return next((attempt.error for attempt in reversed(self.of(group)) if attempt.worker == self.worker), "unknown")

  def __enter__(self) -> "Failures":
    """Begins to show the other workers of the study that this one is alive."""
    self._beat()
    self._others()
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    self._thread.join()
    if hosts.is_first():
      remove(self._presence)

  def _keep_beating(self) -> None:
    while not self._closed.wait(self._patience / 6):
      with contextlib.suppress(OSError, UserError):  # the disk is slow or full, and the next attempt may succeed
        self._beat()
        self._others()

  def _beat(self) -> None:
    self._beats += 1
    if hosts.is_first():  # the processes of a job are one worker
      write_text(self._presence, f"{self.worker} {self._beats}")

  @property
  def _presence(self) -> epath.Path:
    return self.folder.parent / "workers" / f"{processes.this_process()}.{sha256_text(self.worker)[:12]}"

  def _others(self) -> dict[str, bool]:
    """Returns the files of other workers that seem alive, and whether this worker has seen each of them change."""
    folder, now = self._presence.parent, self._clock()
    names = {*os.listdir(folder)} if folder.exists() else set()
    with self._lock:
      before, self._seen = self._seen, {}
      for name in names - {self._presence.name}:
        if name.startswith(".") or processes.has_certainly_ended(name.partition(".")[0]):
          continue
        try:
          text = (folder / name).read_text()
        except FileNotFoundError:  # it has just ended
          continue
        earlier = before.get(name)
        if earlier is None or earlier[0] != text:
          earlier = (text, now, earlier is not None)
        self._seen[name] = earlier
      return {name: changed for name, (_, since, changed) in self._seen.items() if now - since < self._patience}

  def forget(self) -> None:
    """Removes the records of failed attempts, so that every run may be tried as often as a new one."""
    remove(self.folder)


def alone(attempts: Iterable[Attempt], run_ids: Collection[str]) -> set[str]:
  """Returns the runs that have to be tried alone, because their packs failed too often or ran out of memory."""
  together = [attempt for attempt in attempts if len(attempt.run_ids) > 1]
  return {
    run_id
    for run_id in run_ids
    if any(attempt.out_of_memory for attempt in together if run_id in attempt.run_ids)
    or sum(run_id in attempt.run_ids for attempt in together) >= TRIES
  }


def has_failed(attempts: Iterable[Attempt], run_id: str) -> bool:
  """Whether a run has failed alone `TRIES` times."""
  return sum(attempt.run_ids == (run_id,) for attempt in attempts) >= TRIES


def self_check(workdir: epath.PathLike) -> str | None:
  """Describes what is wrong with this machine, or returns None: checks a product on each device and a file on disk."""
  # The integers are so small that every format of the matrix units represents them and their products exactly.
  left, right = (np.arange(64 * 64).reshape(64, 64) * k % 7 for k in (1, 3))
  for device in jax.local_devices():
    try:
      placed = [jax.device_put(x.astype(np.float32), device) for x in (left, right)]
      product = np.asarray(jax.numpy.matmul(*placed, preferred_element_type=np.float32))
    except Exception as error:
      return f"{device} does not multiply two matrices ({describe(error)})"
    if not np.array_equal(product, left @ right):
      return f"{device} multiplies two matrices wrongly"
  path, text = epath.Path(workdir) / f".check.{processes.this_process()}", os.urandom(1 << 15).hex()
  try:
    write_text(path, text)
    read_back = path.read_text()
    remove(path)
  except Exception as error:
    return f"{workdir} cannot be written and read ({describe(error)})"
  return None if read_back == text else f"{workdir} does not return what was written to it"


def failed_and_diverged(records: Iterable[Record]) -> dict[str, list[dict[str, str]]]:
  """Lists the runs that failed or diverged, in the form of a sealed forecast."""
  rows = [{"run_id": one.run_id, "status": one.status, "error": one.error} for one in records]
  return {status: [row for row in rows if row["status"] == status] for status in ("failed", "diverged")}
