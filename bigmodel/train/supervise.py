"""What keeps a run going: a supervisor that restarts a dead process, a watchdog that ends a hanging one.

No JAX in here: the supervisor is the parent of the process that trains, and must not
hold devices, nor die of what kills its child.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from etils import epath

FINAL = (0, 2, 75)  # done, wrong input, interrupted: starting again would change nothing, or is for the user to say
LONGEST_WAIT = 60.0


def progress(workdir: epath.PathLike) -> list[str]:
  """What a run or study has safely on disk; a restart that adds to it was worth it."""
  workdir = epath.Path(workdir)
  runs = [workdir, *(workdir / "runs").glob("*")]
  found = []
  for run in runs:
    found += [f"{run.name}/{p.name}" for p in (run / "checkpoints").glob("[0-9]*")]
    found += [f"{run.name}/record" for _ in run.glob("record.json")]
  return sorted(found)


def has_record(workdir: epath.PathLike) -> bool:
  """Whether the folder is that of a single run that has ended."""
  return (epath.Path(workdir) / "record.json").exists()


def supervise(
  command: list[str],
  restarts: int,
  done: Callable[[], Any],
  first_wait: float = 1.0,
  say: Callable = print,
  is_over: Callable[[], bool] = bool,
) -> int:
  """Runs `command` until it ends well, and again when it dies; returns its exit code.

  Where `is_over()` the run has ended, however it ended: starting again would only print its record once more.
  Gives up after `restarts` restarts in a row that left `done()` as it was. Waits
  twice as long before each of them, up to a minute. Signals go to the child.
  """
  child: subprocess.Popen | None = None
  stopped = False

  def forward(signum: int, frame: object) -> None:
    nonlocal stopped
    stopped = True
    if child is not None:
      child.send_signal(signum)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  tries, before = 0, done()
  while True:
    child = subprocess.Popen(command, start_new_session=True)  # Ctrl-C comes to it from here, once
    if stopped:
      child.send_signal(signal.SIGTERM)
    code = child.wait()
    if code in FINAL or (code == 1 and is_over()):
      return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if stopped:
      return 75
    now = done()
    tries, before = (1 if now != before else tries + 1), now
    if tries > restarts:
      say(f"the process {how}; giving up after {restarts} restarts without progress", file=sys.stderr)
      return 1
    wait = min(LONGEST_WAIT, first_wait * 2 ** (tries - 1))
    say(f"the process {how}; restart {tries} of {restarts} in {wait:g} s", file=sys.stderr, flush=True)
    until = time.monotonic() + wait
    while time.monotonic() < until:
      if stopped:
        return 75
      time.sleep(min(0.1, wait))


class Watchdog:
  """Ends this process, with the stacks of its threads on standard error, when `beat` is not called for too long.

  Counts from the first beat: the first step compiles. What hangs is mostly a
  collective whose other side is gone; only a new process gets out of that.
  """

  def __init__(self, seconds: float, end: Callable[[int], Any] = os._exit):
    self._seconds, self._end = seconds, end
    self._last: float | None = None
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    if seconds > 0:
      self._thread.start()

  def beat(self) -> None:
    self._last = time.monotonic()

  def close(self) -> None:
    self._closed.set()

  def _watch(self) -> None:
    while not self._closed.wait(min(1.0, self._seconds / 4)):
      if self._last is not None and time.monotonic() - self._last > self._seconds:
        faulthandler.dump_traceback(all_threads=True)
        print(f"no step ended for {self._seconds:g} s (config.train.step_timeout); ending the process", file=sys.stderr)
        sys.stderr.flush()
        self._end(1)
        return
