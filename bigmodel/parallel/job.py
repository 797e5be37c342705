"""Ends all processes of a job when one of them fails.

Without this, the others would wait in a collective or a barrier for minutes, and JAX would abort them with an exit code
that supervisors take for a crash. A process that fails publishes its exit code and message; a thread of each process
looks for that, prints it, and ends its process with the same code.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from bigmodel.parallel import hosts

POLL_SECONDS = 0.5
NOTICE_SECONDS = 5.0  # in which the other processes notice a failure
LEAVE_MS = 30 * 60 * 1000
FAILURE, SEEN, ENDED = "bigmodel/job/failure", "bigmodel/job/seen", "bigmodel/job/ended"


class Failure(msgspec.Struct, frozen=True):
  """Why a process of the job failed, and its exit code."""

  process: int
  code: int
  message: str


class Job:
  """This process's place in a job of several."""

  def __init__(self, client: hosts.Client, process: int, processes: int, end: Callable[[int], NoReturn] = os._exit):
    self._client, self._process, self._processes, self._end = client, process, processes, end
    self._closed = threading.Event()
    self._lock = threading.Lock()  # held by the thread that ends this process
    self._thread = threading.Thread(target=self._watch, name="job", daemon=True)
    self._thread.start()

  def fail(self, code: int, message: str) -> None:
    """Publishes why this process failed, waits a little until the others have noticed, and ends it.

    The exit code is that of the process that failed first, because the others may only have lost their connection.
    """
    with self._lock, contextlib.suppress(Exception):  # process 0 may be gone
      try:
        text = msgspec.json.encode(Failure(self._process, code, message)).decode()
        self._client.key_value_set(FAILURE, text)
      except Exception:  # another process was faster
        failure = self._failure()
        code = failure.code if failure is not None else code
      self._leave_with(code)
    self._end(code)

  def leave(self) -> None:
    """Waits until all processes have come to the end of the command, and stops watching them."""
    self._client.wait_at_barrier(ENDED, LEAVE_MS)
    self._closed.set()
    self._thread.join()

  def _watch(self) -> None:
    while not self._closed.wait(POLL_SECONDS):
      failure = self._failure()
      if failure is not None and failure.process != self._process:
        with self._lock:
          print(f"bigmodel: process {failure.process} of this job failed: {failure.message}", file=sys.stderr)
          self._leave_with(failure.code)

  def _failure(self) -> Failure | None:
    try:
      return msgspec.json.decode(self._client.key_value_try_get(FAILURE), type=Failure)
    except Exception:  # no host has failed so far
      return None

  def _leave_with(self, code: int) -> None:
    """Ends this process. Process 0 ends last, because JAX aborts the others when it is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):
      self._client.key_value_set(f"{SEEN}/{self._process}", "1", allow_overwrite=True)
    until = time.monotonic() + NOTICE_SECONDS
    while time.monotonic() < until and not all(self._has_seen(i) for i in range(self._processes)):
      time.sleep(0.05)
    if self._process == 0:
      time.sleep(POLL_SECONDS)
    self._end(code)

  def _has_seen(self, process: int) -> bool:
    try:
      return bool(self._client.key_value_try_get(f"{SEEN}/{process}"))
    except Exception:
      return False
