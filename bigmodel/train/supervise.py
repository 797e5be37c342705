"""A supervisor, which restarts a process that died, and a watchdog, which ends a process that hangs.

This file does not use JAX: the supervisor is the parent of the process that trains. It must not hold devices, and
must survive what kills its child.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from etils import epath

FINAL = (0, 2, 75)  # done, invalid input, interrupted: a restart would change nothing, or is the user's decision
LONGEST_WAIT = 60.0


def progress(workdir: epath.PathLike) -> list[str]:
  """Names the checkpoints and records of a run or study on disk. A restart that changes them has made progress."""
  workdir = epath.Path(workdir)
  runs = [workdir, *(workdir / "runs").glob("*")]
  names = []
  for run in runs:
    names += [f"{run.name}/{path.name}" for path in (run / "checkpoints").glob("[0-9]*")]
    names += [f"{run.name}/record" for _ in run.glob("record.json")]
  return sorted(names)


def has_record(workdir: epath.PathLike) -> bool:
  """Whether the folder belongs to a single run that has ended."""
  return (epath.Path(workdir) / "record.json").exists()


def supervise(
  command: list[str],
  restarts: int,
  done: Callable[[], object],
  first_wait: float = 1.0,
  say: Callable = print,
  is_over: Callable[[], bool] = bool,
) -> int:
  """Runs `command`, and again each time it dies, until it ends; returns its exit code.

  A run for which `is_over()` is true has ended with a record, and is not restarted. Gives up after `restarts`
  restarts in a row that did not change `done()`. Each wait before a restart is twice as long as the last, up to a
  minute. Signals are passed on to the child.
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
    child = subprocess.Popen(command, start_new_session=True)  # this process passes Ctrl-C on, once
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

  Time counts from the first beat, because the first step compiles. Usually a collective hangs because another process
  has died, and only a new process can recover from that.
  """

  def __init__(self, seconds: float, end: Callable[[int], object] = os._exit):
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
