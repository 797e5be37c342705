"""Failed attempts at a study's runs: who tries next, which runs have failed for good, and which worker is unfit.

`failures/GROUP.json` in a study's folder lists the attempts at a group of runs that ended in an exception. The holder
of the group's lease writes it. A group is tried twice, the second time by another worker where there is one. Then its
runs are tried one by one, as what fails together may fit or work alone, and a run that fails alone twice has failed.
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
from bigmodel.workers.leases import PATIENCE

TRIES = 2  # of a group, and then of each of its runs alone
IN_A_ROW = 2  # failures of groups that succeed elsewhere, after which a worker stops
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
  """The kind of an exception and the first line of what it says."""
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0] if lines else ''}"


class Failures:
  """The failed attempts of one study, as one worker sees them, and which other workers are alive.

  Within `with` a thread rewrites a file that tells the others that this worker is there; one whose file did not change
  for `patience` seconds of this worker's clock is taken for dead.
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
    self._failed_here: set[str] = set()  # groups
    # Groups that failed here since the last that succeeded, and whether they have succeeded elsewhere.
    self._in_a_row: dict[str, Callable[[], bool]] = {}
    self._seen: dict[str, tuple[str, float, bool]] = {}  # file of a worker -> (its text, since when, did it change)
    self._beats, self._closed, self._lock = 0, threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._keep_beating, name="presence", daemon=True)

  def of(self, group: str) -> list[Attempt]:
    path = self.folder / f"{group}.json"
    rows = read_json(path) if path.exists() else []
    return [Attempt(tuple(row["run_ids"]), row["worker"], row["error"]) for row in rows]

  def add(self, group: str, run_ids: Sequence[str], error: BaseException, has_succeeded: Callable[[], bool]) -> None:
    """Notes a failed attempt; `has_succeeded` tells later whether the group has succeeded after all."""
    attempts = [*self.of(group), Attempt(tuple(run_ids), self.worker, describe(error))]
    write_json(self.folder / f"{group}.json", [dataclasses.asdict(one) for one in attempts])
    self._failed_here.add(group)
    self._in_a_row.setdefault(group, has_succeeded)

  def succeeded(self, group: str) -> None:
    """Notes that this worker trained a group to its end, and none of its runs failed."""
    self._failed_here.discard(group)
    self._in_a_row.clear()

  def waits_for_others(self, group: str, run_ids: Callable[[], Collection[str]]) -> bool:
    """Whether these runs of a group are left to other workers: as long as one is alive, if all failed here last."""
    if group not in self._failed_here or not self._beats:
      return False
    last = {run_id: attempt.worker for attempt in self.of(group) for run_id in attempt.run_ids}
    return all(last.get(run_id) == self.worker for run_id in run_ids()) and bool(self._others())

  def can_be_spared(self) -> bool:
    """Whether two workers that stay are there: one to train the only group left, one in case that fails there."""
    alive = [name for name, changed in self._others().items() if changed]
    return sum(name < self._presence.name for name in alive) >= 2

  def require_fit(self) -> None:
    """Raises `UnfitWorker` where the last groups that failed here in a row have succeeded elsewhere."""
    elsewhere = [group for group, has_succeeded in self._in_a_row.items() if has_succeeded()]
    if len(elsewhere) >= IN_A_ROW:
      raise UnfitWorker(
        f"{self.worker} stops: {', '.join(elsewhere)} failed here one after another and succeeded on other workers"
        f" (the last error here: {self._last_error(elsewhere[-1])}); look at this machine"
      )

  def _last_error(self, group: str) -> str:
    return next((one.error for one in reversed(self.of(group)) if one.worker == self.worker), "unknown")

  def __enter__(self) -> "Failures":
    """Tells other workers of the study that this one is there."""
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
      with contextlib.suppress(OSError, UserError):  # a slow or full disk: the next time may do
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
    """The files of other workers that are alive, as far as is known here, and whether they were seen to change."""
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
        known = before.get(name)
        if known is None or known[0] != text:
          known = (text, now, known is not None)
        self._seen[name] = known
      return {name: changed for name, (_, since, changed) in self._seen.items() if now - since < self._patience}

  def forget(self) -> None:
    """Removes what is known of failed attempts, so that all runs have all their tries again."""
    remove(self.folder)


def alone(attempts: Iterable[Attempt], run_ids: Collection[str]) -> set[str]:
  """Of these runs, those that are to be tried one by one: their packs failed too often, or ran out of memory."""
  together = [one for one in attempts if len(one.run_ids) > 1]
  return {
    run_id
    for run_id in run_ids
    if any(one.out_of_memory for one in together if run_id in one.run_ids)
    or sum(run_id in one.run_ids for one in together) >= TRIES
  }


def has_failed(attempts: Iterable[Attempt], run_id: str) -> bool:
  """Whether a run failed by itself as often as it is tried."""
  return sum(one.run_ids == (run_id,) for one in attempts) >= TRIES


def self_check(workdir: epath.PathLike) -> str | None:
  """What is wrong with this machine, or None: each device multiplies, and the folder returns what is written to it."""
  # Integers so small that every format of the matrix units has them, and their products, exactly.
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
    found = path.read_text()
    remove(path)
  except Exception as error:
    return f"{workdir} cannot be written and read ({describe(error)})"
  return None if found == text else f"{workdir} does not return what was written to it"


def failed_and_diverged(records: Iterable[Record]) -> dict[str, list[dict[str, str]]]:
  """The runs without a loss, as a sealed forecast lists them."""
  rows = [{"run_id": one.run_id, "status": one.status, "error": one.error} for one in records]
  return {status: [row for row in rows if row["status"] == status] for status in ("failed", "diverged")}
