"""Lets only one command at a time train the run of a folder. A second command is refused, and the message names the
first.
"""

import contextlib
import datetime
import logging
import os
import socket
import time
from collections.abc import Iterator

from etils import epath

from bigmodel import processes
from bigmodel.errors import Interrupted, UserError
from bigmodel.parallel import hosts
from bigmodel.train.leases import ENDED, PATIENCE, POLL_SECONDS, Lease, Leases, WhileHeld, can_be_in
from bigmodel.train.stop import Stop

log = logging.getLogger("bigmodel")
NAME = "run"


@contextlib.contextmanager
def exclusive(folder: epath.Path, stop: Stop, patience: float = PATIENCE) -> Iterator[Stop]:
  """Holds the lease on a run's folder; yields the stop for its training, which is also requested if the lease is lost.

  The lease of a command that has ended on this machine is free at once, that of a command on another machine after
  `patience` seconds without a sign of life. Raises `UserError` as soon as it is certain that another command trains
  here. In a job of several hosts the first holds the lease. An object store has no leases.
  """
  lease: Lease | None = None

  def claim() -> None:
    nonlocal lease
    if can_be_in(folder):
      lease = _claim(folder, stop, patience)

  hosts.first(claim)
  with lease or contextlib.nullcontext():
    yield WhileHeld(stop, lease) if lease else stop


def _claim(folder: epath.Path, stop: Stop, patience: float) -> Lease:
  """The lease on the run's folder, which is awaited while its holder may be alive or dead."""
  _refuse_run_of_study(folder)
  leases, is_waiting = Leases(folder / "leases", _this_command(), patience), False
  while (lease := leases.claim(NAME)) is None:
    holder = leases.holder(NAME)
    if NAME in leases.alive or processes.certainly_runs(holder.process):
      raise UserError(f"--workdir: {folder} is being trained by {holder.worker}; wait until it ends, or stop it")
    if stop.requested():
      raise Interrupted("stopped while waiting for another command")
    if not is_waiting and holder.worker:
      log.warning("%s: waiting up to %g s to see whether %s still trains here", folder, patience, holder.worker)
      is_waiting = True
    time.sleep(min(POLL_SECONDS, patience / 6))
  return lease


def _refuse_run_of_study(folder: epath.Path) -> None:
  """Raises `UserError` for a run of a study that a process of this machine trains; its leases are for whole groups."""
  study = folder.parent.parent
  if folder.parent.name != "runs" or not (study / "study.json").exists():
    return
  leases = Leases(study / "leases", _this_command())
  for name in sorted(leases.claimed() - {ENDED}):
    if processes.certainly_runs(leases.holder(name).process):
      raise UserError(f"--workdir: {folder} belongs to a study that is being trained; wait until it ends, or stop it")


def _this_command() -> str:
  """Describes this process for the users of other machines: 'process 123 on HOST since 2026-01-31 12:00:00 UTC'."""
  since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
  return f"process {os.getpid()} on {socket.gethostname()} since {since}"
