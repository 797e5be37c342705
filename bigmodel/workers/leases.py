"""Leases: which worker trains what, by files alone. Any worker may die at any moment, and clocks may differ.

The lease of a thing is the highest numbered file in its folder, which its holder rewrites again and again. It is
given up by a last word in that file, or lost when others saw it unchanged for `patience` seconds of their own clocks,
at once where they see that its holder was a process of their machine and has ended. To take it is to create the next
number, which the file system lets one worker do. Numbers only grow: whoever finds one above its own has lost, however
late it wakes up, and stops before its next step or save. What it was writing just then is what the other writes, too:
a run's bits do not depend on who trains it.
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
ENDED = "ended"  # the folder beside the leases with a mark for each thing that has
PATIENCE = 30.0  # seconds that a worker may be silent
POLL_SECONDS = 0.5
WINDOW = 20  # leases of others that a worker without work looks at; as many look as there are workers


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
    self.alive: set[str] = set()  # what was renewed between the last two looks

  def claim(self, name: str) -> "Lease | None":
    """The lease of `name`, or None where another worker holds it."""
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

  def claimed(self) -> set[str]:
    """What somebody holds or has held."""
    return _names(self.folder)

  def ended(self) -> set[str]:
    return _names(self.folder / ENDED)

  def mark_ended(self, name: str) -> None:
    """Tells the others, at the price of one listing for all, that nobody need look at it again."""
    (self.folder / ENDED).mkdir(parents=True, exist_ok=True)
    (self.folder / ENDED / name).touch()

  def forget_ended(self, names: Iterable[str] | None = None) -> None:
    """Of these, or of all: their records may have been set aside since."""
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
  """Object stores have no file that one of many creates."""
  return "://" not in str(folder)


def _names(folder: epath.Path) -> set[str]:
  try:
    return set(os.listdir(folder))
  except FileNotFoundError:
    return set()


class Lease:
  """One lease of one worker; within `with` a thread renews it."""

  def __init__(self, leases: Leases, name: str, number: int):
    self._leases, self._name, self.number = leases, name, number
    self._path = leases.folder / name / str(number)
    self._beats = 0
    self._renewed = leases.clock()
    self._closed, self._lock = threading.Event(), threading.Lock()
    self._lost = False
    self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

  def create(self) -> bool:
    """Is the number this worker's? Of several that create it one succeeds."""
    with refused(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      try:
        handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
      except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
      file.write(self._says())
    for path in self._path.parent.iterdir():  # of holders that have lost
      if path.name.isdigit() and int(path.name) < self.number:
        path.unlink(missing_ok=True)
    return self.held()

  def _says(self) -> str:
    return f"{self._leases.worker} {self._beats} {self._leases.process}"

  def held(self) -> bool:
    """Does no higher number exist? What was once lost stays lost."""
    with self._lock:
      if not self._lost:
        self._lost = self._leases._newest(self._name)[0] != self.number
      return not self._lost

  def seems_lost(self) -> bool:
    """Whether it is lost as far as is known here; looks at the disk only where it was not renewed for a while."""
    late = self._leases.clock() - self._renewed > self._leases.patience / 3
    return self._lost or (late and not self.held())

  def __enter__(self) -> "Lease":
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    self._thread.join()
    with contextlib.suppress(OSError, UserError):  # others find out by themselves
      self.give_up()

  def give_up(self) -> None:
    """The last word, where it is still this worker's to say."""
    if self.held():
      write_text(self._path, RELEASED)

  def _renew(self) -> None:
    while not self._closed.wait(self._leases.patience / 6):
      with contextlib.suppress(OSError, UserError):  # a slow or full disk: the next time may do
        if not self.beat():
          return

  def beat(self) -> bool:
    """Renews it; false where it is lost."""
    if self.held():
      self._beats += 1
      write_text(self._path, self._says())
      self._renewed = self._leases.clock()
      return True
    return False


class Turn(NamedTuple):
  """What a worker does next: it works at the thing of this name, or waits; neither where everything has ended."""

  name: str
  lease: Lease | None
  wait: float  # seconds


class Turns:
  """What a worker does next: which thing to work at, in an order of its own, or how long to wait.

  A turn costs two listings (one, once all has been claimed) and at most `WINDOW` looks at leases of others, however
  many things there are, and a look at what is not ready yet. Whose lease was not renewed since the last look stays in
  the window, until it is lost; the others make way.
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
      random.Random(leases.worker).shuffle(self._left)  # so that workers seldom want the same
    self._wait, self._last = POLL_SECONDS, ""
    self._claimed: set[str] = set()  # what was; claims do not vanish

  def again(self, names: Sequence[str]) -> None:
    """Forgets that these have ended."""
    self._leases.forget_ended(names)
    self._left += names

  def next(self) -> Turn:
    """The next thing to work at with its lease, or the seconds to wait."""
    if self._last and self._ended(self._last):
      self._leases.mark_ended(self._last)
    known, self._last = self._leases.ended(), ""
    self._left = [name for name in self._left if name not in known]
    if not self._claimed.issuperset(self._left):
      self._claimed = self._leases.claimed()
    looks = 0
    for name in sorted(self._left, key=lambda name: self._shuffled and name in self._claimed):
      if looks == WINDOW:
        break
      if self._ended(name):
        self._leases.mark_ended(name)
        self._left.remove(name)
      elif self._ready(name):
        lease, looks = self._leases.claim(name), looks + 1
        if lease is not None or name in self._leases.alive:
          self._left.remove(name)
          self._left.append(name)  # others first, the next time
        if lease is not None:
          self._wait, self._last = POLL_SECONDS, name
          return Turn(name, lease, 0.0)
    if not self._left:
      return Turn("", None, 0.0)
    self._wait = min(2 * self._wait, self._leases.patience / 3)
    return Turn("", None, self._wait)


class WhileHeld:
  """A `Stop` for the runs of one lease: also requested where the lease is lost.

  Then the training loop stops as for a signal, in all processes of a job, and saves nothing.
  """

  def __init__(self, stop: Stop, lease: Lease):
    self._stop, self._lease = stop, lease

  def requested(self) -> bool:
    return self._stop.requested() or self._lease.seems_lost()

  def lost(self) -> bool:
    return not self._lease.held()
