"""Leases decide which worker trains which group, by files alone. Workers may die at any time, and clocks may differ.

A single run has a lease as well (see `ownership.py`), whose worker is a command.

The lease on a name is the highest numbered file in the name's folder. Its holder keeps rewriting the file. The lease is
free when its holder wrote `RELEASED` into the file, when another worker saw the file unchanged for `patience` seconds
of its clock, or when the holder was a process on the same machine that has ended. A worker takes the lease by creating
the file with the next number, which the file system allows only one worker to do. Numbers only grow: a holder that sees
a higher number has lost its lease, however late it wakes up, and stops before its next step or save. If it was writing
at that moment, that does no harm: both workers write the same, because results do not depend on which worker trains.
"""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from etils import epath

from bigmodel import processes
from bigmodel.config import require
from bigmodel.errors import UserError
from bigmodel.files import refused, write_text
from bigmodel.train.stop import Stop

RELEASED = "released"
ENDED = "ended"  # the folder beside the leases that holds an empty file for each group that has ended
PATIENCE = 30.0  # seconds without a sign of life after which a worker is considered dead
POLL_SECONDS = 0.5
WINDOW = 20  # leases of others that an idle worker reads in one turn: all idle workers load the file system


class Holder(NamedTuple):
  """Who holds a lease: the name of the worker, and its process as `processes.this_process` names it."""

  worker: str = ""
  process: str = ""


class Leases:
  """The leases of one study, as one worker sees them."""

  def __init__(
    self,
    folder: epath.PathLike,
    worker: str,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
  ):
    self.folder, self.worker, self.patience, self.clock = epath.Path(folder), worker, patience, clock
    self.process = processes.this_process()
    require(can_be_in(folder), f"{folder}: workers share a folder of a file system, not of an object store")
    self._seen: dict[str, tuple[tuple[int, str], float]] = {}  # name -> (number and text of the lease, since when)
    self.alive: set[str] = set()  # names whose lease was renewed between the last two reads

  def claim(self, name: str) -> "Lease | None":
    """Returns a new lease on `name`, or None if another worker holds it."""
    newest, text = self._newest(name)
    if newest and text != RELEASED and not processes.has_certainly_ended(text.rpartition(" ")[2]):
      now, before = self.clock(), self._seen.get(name)
      self.alive.discard(name)
      if before is None or before[0] != (newest, text):
        self._seen[name] = ((newest, text), now)
        if before is not None:
          self.alive.add(name)
        return None
      if now - before[1] < self.patience:
        return None
    lease = Lease(self, name, newest + 1)
    return lease if lease.create() else None

  def holder(self, name: str) -> Holder:
    """Returns who holds the lease on `name`; both texts are empty if the lease is free."""
    words = self._newest(name)[1].rsplit(" ", 2)
    return Holder(words[0], words[2]) if len(words) == 3 else Holder()

  def claimed(self) -> set[str]:
    """Returns the names on which any worker holds or has held a lease."""
    return _names(self.folder)

  def ended(self) -> set[str]:
    return _names(self.folder / ENDED)

  def mark_ended(self, name: str) -> None:
    """Marks a name as ended, so that other workers skip it after one listing of the folder of marks."""
    (self.folder / ENDED).mkdir(parents=True, exist_ok=True)
    (self.folder / ENDED / name).touch()

  def forget_ended(self, names: Iterable[str] | None = None) -> None:
    """Removes the marks of these names, or all marks: records may have been set aside since."""
    for name in self.ended() if names is None else names:
      (self.folder / ENDED / name).unlink(missing_ok=True)

  def _newest(self, name: str) -> tuple[int, str]:
    folder = self.folder / name
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    if not numbers:
      return 0, ""
    try:
      return max(numbers), (folder / str(max(numbers))).read_text()
    except FileNotFoundError:  # between a removal and a creation
      return max(numbers), ""


def can_be_in(folder: epath.PathLike) -> bool:
  """Whether leases can be in a folder. An object store has no exclusive creation of files."""
  return "://" not in str(folder)


def _names(folder: epath.Path) -> set[str]:
  try:
    return set(os.listdir(folder))
  except FileNotFoundError:
    return set()


class Lease:
  """One lease of one worker. A thread renews it inside a `with` statement."""

  def __init__(self, leases: Leases, name: str, number: int):
    self._leases, self._name, self.number = leases, name, number
    self._path = leases.folder / name / str(number)
    self._beats = 0
    self._renewed = leases.clock()
    self._closed, self._lock = threading.Event(), threading.Lock()
    self._lost = False
    self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

  def create(self) -> bool:
    """Creates the lease's file; returns whether this worker, of all that try, succeeded."""
    with refused(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      try:
        handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
      except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
      file.write(self._text())
    for path in self._path.parent.iterdir():  # the files of earlier holders
      if path.name.isdigit() and int(path.name) < self.number:
        path.unlink(missing_ok=True)
    return self.held()

  def _text(self) -> str:
    return f"{self._leases.worker} {self._beats} {self._leases.process}"

  def held(self) -> bool:
    """Whether this worker still holds the lease: no higher number exists. A lost lease stays lost."""
    with self._lock:
      if not self._lost:
        self._lost = self._leases._newest(self._name)[0] != self.number
      return not self._lost

  def seems_lost(self) -> bool:
    """Whether the lease seems lost. Reads the disk only if the lease was not renewed for a while."""
    late = self._leases.clock() - self._renewed > self._leases.patience / 3
    return self._lost or (late and not self.held())

  def __enter__(self) -> "Lease":
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    self._thread.join()
    with contextlib.suppress(OSError, UserError):  # then others wait until the lease expires
      self.give_up()

  def give_up(self) -> None:
    """Releases the lease if this worker still holds it."""
    if self.held():
      write_text(self._path, RELEASED)

  def _renew(self) -> None:
    while not self._closed.wait(self._leases.patience / 6):
      with contextlib.suppress(OSError, UserError):  # the disk is slow or full, and the next attempt may succeed
        if not self.beat():
          return

  def beat(self) -> bool:
    """Renews the lease; returns False if it is lost."""
    if self.held():
      self._beats += 1
      write_text(self._path, self._text())
      self._renewed = self._leases.clock()
      return True
    return False


class Turn(NamedTuple):
  """The next action of a worker: it trains `name`, or waits; with neither a name nor a wait everything has ended."""

  name: str
  lease: Lease | None
  wait: float  # seconds


class Turns:
  """Chooses what a worker does next: claim a name, in an order that differs between workers, or wait.

  A turn lists two folders (one, once every name has been claimed) and reads at most `WINDOW` leases of other workers,
  however many names there are, and checks each name that is not ready yet. A name whose lease was not renewed since the
  last read stays in the window until its lease is lost; names whose leases are alive move to the end.
  """

  def __init__(
    self,
    leases: Leases,
    names: Sequence[str],
    ended: Callable[[str], bool],
    ready: Callable[[str], bool],
    shuffled: bool = True,
  ):
    self._leases, self._ended, self._ready = leases, ended, ready
    self._left, self._shuffled = list(names), shuffled
    if shuffled:
      random.Random(leases.worker).shuffle(self._left)  # so that workers rarely try to claim the same name
    self._wait, self._last = POLL_SECONDS, ""
    self._claimed: set[str] = set()  # names claimed at the last listing; a claim never disappears

  def again(self, names: Sequence[str]) -> None:
    """Removes the marks that these names have ended, and offers them again."""
    self._leases.forget_ended(names)
    self._left += names

  def next(self) -> Turn:
    """Returns the next name with its lease, or the seconds to wait."""
    if self._last and self._ended(self._last):
      self._leases.mark_ended(self._last)
    ended, self._last = self._leases.ended(), ""
    self._left = [name for name in self._left if name not in ended]
    if not self._claimed.issuperset(self._left):
      self._claimed = self._leases.claimed()
    reads = 0
    for name in sorted(self._left, key=lambda name: self._shuffled and name in self._claimed):
      if reads == WINDOW:
        break
      if self._ended(name):
        self._leases.mark_ended(name)
        self._left.remove(name)
      elif self._ready(name):
        lease, reads = self._leases.claim(name), reads + 1
        if lease is not None or name in self._leases.alive:
          self._left.remove(name)
          self._left.append(name)  # the next turn tries other names first
        if lease is not None:
          self._wait, self._last = POLL_SECONDS, name
          return Turn(name, lease, 0.0)
    if not self._left:
      return Turn("", None, 0.0)
    self._wait = min(2 * self._wait, self._leases.patience / 3)
    return Turn("", None, self._wait)


class WhileHeld:
  """A `Stop` for runs under a lease, which is also requested when the lease is lost.

  Losing the lease stops the training loop in all processes of a job, as a signal does, but nothing is saved.
  """

  def __init__(self, stop: Stop, lease: Lease):
    self._stop, self._lease = stop, lease

  def requested(self) -> bool:
    return self._stop.requested() or self._lease.seems_lost()

  def lost(self) -> bool:
    return not self._lease.held()
