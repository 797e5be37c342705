"""Names processes uniquely, and tells whether a named process has certainly ended.

A worker that died on this machine is replaced at once, and its half-written files are removed. Whether a process of
another machine still runs is never certain.
"""

import functools
import os
from pathlib import Path

from bigmodel.files import sha256_text


def this_process() -> str:
  """`MACHINE-NUMBER-START`: unlike that of any other process; it can be part of a file's name."""
  return f"{_machine()}-{os.getpid()}-{_start(os.getpid())}"


def has_certainly_ended(process: str) -> bool:
  """Whether `process`, as `this_process` names it, ran on this machine and is gone."""
  return _runs_here(process) is False


def certainly_runs(process: str) -> bool:
  """Whether `process`, as `this_process` names it, is running on this machine."""
  return _runs_here(process) is True


def _runs_here(process: str) -> bool | None:
  """Whether the process is running, or None if it is not a process of this machine."""
  machine, _, rest = process.partition("-")
  number, _, start = rest.partition("-")
  if not machine or machine != _machine() or not number.isdigit():
    return None
  return _start(int(number)) == start


@functools.cache
def _machine() -> str:
  """A digest of this boot, container and user, within which process numbers are comparable.

  Empty if the system does not provide them.
  """
  try:
    if os.readlink("/proc/self") != str(os.getpid()):
      return ""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return sha256_text(f"{boot}/{os.readlink('/proc/self/ns/pid')}/{os.getuid()}")[:16]
  except OSError:
    return ""


def _start(number: int) -> str:
  """When the process of this number started, in ticks since boot; empty if it has ended."""
  try:
    facts = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
  except (FileNotFoundError, ProcessLookupError):
    return ""
  return "" if facts[0] in ("Z", "X") else facts[19]
