"""Workers: processes that train a study's groups of runs side by side, with the study's folder as their only state."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from bigmodel import record
from bigmodel.config import require
from bigmodel.data.pipeline import Datasets
from bigmodel.files import UserError
from bigmodel.sweep import execute
from bigmodel.sweep.leases import PATIENCE, Flag, Leases, Lost
from bigmodel.train.display import Display, duration
from bigmodel.train.run import Interrupted, Run, read_status

KINDS = ("local",)
POLL_SECONDS = 0.5
RESTARTS = 10  # in a row without a run that ended


@dataclasses.dataclass(frozen=True)
class Workers:
  """What `--workers=local:N` asks for."""

  kind: str
  count: int

  @classmethod
  def parse(cls, text: str) -> "Workers":
    kind, _, count = text.partition(":")
    require(kind in KINDS, f"--workers: {text!r}; write local:N, such as local:4")
    cores = len(os.sched_getaffinity(0))
    require(not count or (count.isdigit() and int(count) > 0), f"--workers: {text!r}; N is a number of processes")
    return cls(kind, int(count) if count else cores)


def group_name(group: Mapping[str, Any]) -> str:
  """What a group's lease is called."""
  return group["run_ids"][0]


def work(
  worker: str,
  groups: Sequence[dict[str, Any]],
  runs: Mapping[str, Run],
  data: Datasets,
  workdir: epath.Path,
  display: Display,
  stop: dict[str, bool],
  patience: float = PATIENCE,
) -> None:
  """Trains groups of runs that no other worker holds, until all have ended."""
  leases, left = Leases(workdir / "leases", worker, patience), list(groups)
  random.Random(worker).shuffle(left)  # so that workers seldom want the same
  wait = POLL_SECONDS
  while left:
    took = False
    for group in list(left):
      if stop["stop"]:
        raise Interrupted("stopped between runs")
      if execute.ended(group, runs):
        left.remove(group)
      elif _trunk_is_done(group, runs) and (lease := leases.claim(group_name(group))) is not None:
        took = True
        with lease:
          try:
            execute.run_groups([group], runs, data, display, Flag(stop, lease))
          except Lost as error:
            display.say(str(error))
    wait = POLL_SECONDS if took else min(2 * wait, patience / 3)
    if not took and left:
      time.sleep(wait)


def _trunk_is_done(group: Mapping[str, Any], runs: Mapping[str, Run]) -> bool:
  """Have the trunks ended that leave this group's runs a checkpoint, or left it already?"""
  for run_id in group["run_ids"]:
    run = runs[run_id]
    trunk = run.branch and runs.get(run.branch.trunk)
    if trunk and record.read(trunk.folder) is None and execute.waits(run):
      return False
  return True


def run_local(
  workers: Workers, command: Sequence[str], groups: Sequence[dict[str, Any]], runs: Mapping[str, Run],
  display: Display, stop: dict[str, bool],
) -> None:  # fmt: skip
  """Starts processes on this machine, and again those that die, until every group has ended."""
  import jax

  require(
    workers.count == 1 or jax.default_backend() == "cpu",
    f"--workers: {workers.count} processes cannot share this machine's {jax.default_backend()}; use local:1",
  )
  cores = sorted(os.sched_getaffinity(0))
  share = max(1, len(cores) // workers.count)
  slots: list[_Slot] = []
  for i in range(workers.count):
    own = [cores[(i * share + k) % len(cores)] for k in range(share)]
    slots.append(_Slot([*command, f"--worker=local-{i}@{','.join(map(str, own))}"]))
  watch = _Watch(groups, runs, display)
  try:
    while True:
      if stop["stop"]:
        raise Interrupted("stopped; what was trained is saved")
      if not watch.look():
        for slot in slots:
          slot.wait()  # they see it, too
        return
      for slot in slots:
        slot.keep_going(watch.ended)
      time.sleep(POLL_SECONDS)
  finally:
    for slot in slots:
      slot.signal()
    for slot in slots:
      slot.end()


class _Slot:
  """A process that is started again when it dies."""

  def __init__(self, command: list[str]):
    self._command = command
    self._process: subprocess.Popen | None = None
    self._tries, self._before = 0, -1
    self._next = 0.0

  def keep_going(self, ended: int) -> None:
    """Starts the process where none runs; gives up where it dies again and again without a run that ends."""
    if self._process is not None:
      code = self._process.poll()
      if code is None or code == 0:
        return
      if code == 2:
        raise UserError("a worker refused its input; what it said is above")
      self._process = None
      self._tries = self._tries + 1 if ended == self._before else 1
      self._before = ended
      if self._tries > RESTARTS:
        raise RuntimeError(f"a worker died {RESTARTS} times in a row, the last time with code {code}")
      self._next = time.monotonic() + min(30.0, 0.5 * 2 ** (self._tries - 1))
    if time.monotonic() >= self._next:
      self._process = subprocess.Popen(self._command, start_new_session=True, stdout=subprocess.DEVNULL)

  def wait(self) -> None:
    """For the process to end by itself, for a while."""
    if self._process is not None:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(30)

  def signal(self) -> None:
    """Asks it to save what it has, and to end."""
    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)

  def end(self) -> None:
    if self._process is None:
      return
    try:
      self._process.wait(60)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


class _Watch:
  """How far all runs are, said now and then."""

  def __init__(self, groups: Sequence[dict[str, Any]], runs: Mapping[str, Run], display: Display):
    self._left = [(group, [runs[run_id] for run_id in group["run_ids"]]) for group in groups]
    self._total = sum(len(members) for _, members in self._left)
    self._display, self.ended, self._said = display, 0, time.monotonic()

  def look(self) -> int:
    """The number of groups that have not ended."""
    left = []
    for group, members in self._left:
      if all(record.read(run.folder) is not None for run in members):
        self.ended += len(members)
      else:
        left.append((group, members))
    self._left = left
    if time.monotonic() - self._said > 10 and left:
      self._said = time.monotonic()
      running = [read_status(run.folder)["state"] == "running" for _, members in left for run in members]
      text = f"{self.ended} of {self._total} runs have ended, {sum(running)} are under way"
      expected = sum(group["expected_seconds"] for group, _ in left)
      self._display.say(f"{text}, {duration(expected)} of work left")
    return len(left)


def command_of_workers(argv: Sequence[str]) -> list[str]:
  """This command as a worker of its study runs it."""
  kept, words = [], iter(argv)
  for word in words:
    if word == "--workers":
      next(words, None)
    elif not word.startswith("--workers=") and word not in ("--json", "--retry", "--retry-failed"):
      kept.append(word)
  return [sys.executable, "-m", "bigmodel.cli", *kept]


def settle(worker: str) -> str:
  """The worker's own name, of NAME[@CORES]; keeps this process to those cores. Before JAX has any devices."""
  name, _, cores = worker.partition("@")
  if cores:
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
  return name
