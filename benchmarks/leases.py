"""Simulates ten thousand runs on a thousand workers that die, stall and wake up late, without training.

    python benchmarks/leases.py [--runs 10000] [--workers 1000] [--minutes 10]

The `--workers` workers take turns on a simulated clock. Their leases are files in a real folder, in memory. The length
of a run is log-normal around `--minutes`. A worker dies about once an hour, and is replaced a minute later. About once
in two hours a worker stalls for two minutes and then continues as if nothing had happened.

File operations are counted by Python's audit events (listings, opens, renames, removals, new folders) and by checks of
whether a record exists. Prints the operations per simulated second, the operations per second that this disk can do,
and the number of workers at which the disk would be fully busy with leases.
"""

import argparse
import collections
import heapq
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bigmodel.train.leases import PATIENCE, Lease, Leases, Turns

FILES = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
DIES, STALLS = 3600.0, 7200.0  # mean seconds between deaths and between stalls of a worker
STALL, REPLACED = 120.0, 60.0
BIN = 60.0  # operations are counted in bins of this many seconds


class Simulation:
  def __init__(self, runs: int, workers: int, minutes: float, folder: Path):
    self.now, self.rng = 0.0, np.random.default_rng(0)
    self.folder, self.records = folder, folder / "records"
    self.records.mkdir()
    self.names = [f"{i:05d}" for i in range(runs)]
    self.lasts = dict(zip(self.names, 60 * minutes * self.rng.lognormal(-0.125, 0.5, runs), strict=True))
    self.trained: dict[str, float] = collections.defaultdict(float)  # seconds of training of each run
    self.ended: dict[str, int] = collections.defaultdict(int)
    self.operations: dict[int, int] = collections.defaultdict(int)
    self.deaths = self.stalls = self.lost = 0
    self.queue: list[tuple[float, int, Any]] = []
    self.count = 0
    for _ in range(workers):
      self._at(self.rng.uniform(0, 30), self._live())  # workers start at different times

  def hear(self, event: str, arguments: tuple) -> None:
    if event in FILES and arguments and str(self.folder) in str(arguments[0]):
      self.operations[int(self.now / BIN)] += 1

  def _at(self, when: float, what: Any) -> None:
    self.count += 1
    heapq.heappush(self.queue, (when, self.count, what))

  def go(self) -> None:
    while self.queue:
      self.now, _, what = heapq.heappop(self.queue)
      wait = next(what, None)
      if wait is not None:
        self._at(self.now + wait, what)

  def _live(self):
    """Simulates one worker; yields the seconds until its next file operation."""
    leases = Leases(self.folder / "leases", f"w{self.count}", PATIENCE, lambda: self.now)
    turns = Turns(leases, self.names, self._has_ended, lambda _: True)
    dies = self.now + self.rng.exponential(DIES)
    while True:
      name, lease, wait = turns.next()
      if not name and not wait:
        return
      if lease is None:
        yield wait
      else:
        yield from self._train(name, lease, dies)
      if self.now >= dies:
        self.deaths += 1
        self._at(self.now + REPLACED, self._live())
        return

  def _train(self, name: str, lease: Lease, dies: float):
    left = self.lasts[name] - self.trained[name]  # seconds after the last checkpoint
    while left > 0:
      step = min(left, PATIENCE / 6)
      if self.rng.random() < step / STALLS:
        self.stalls += 1
        yield STALL
      yield step
      if self.now >= dies:
        return
      if not lease.beat():
        self.lost += 1
        return
      left -= step
      self.trained[name] += step
    if not lease.held():
      self.lost += 1
      return
    self.operations[int(self.now / BIN)] += 1
    (self.records / name).touch()
    self.ended[name] += 1
    lease.give_up()

  def _has_ended(self, name: str) -> bool:
    self.operations[int(self.now / BIN)] += 1
    return (self.records / name).exists()


def disk(folder: Path) -> float:
  """Measures the lease operations per second that this disk does, one after another."""
  probe = Leases(folder / "probe", "probe")
  lease = probe.claim("one")
  assert lease is not None
  began = time.perf_counter()
  for _ in range(2000):
    lease.beat()
  return 2000 * 3 / (time.perf_counter() - began)  # a listing, an open and a rename


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=int, default=10_000)
  parser.add_argument("--workers", type=int, default=1_000)
  parser.add_argument("--minutes", type=float, default=10.0)
  arguments = parser.parse_args()
  with TemporaryDirectory() as real_disk:
    able = disk(Path(real_disk))
  with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:  # in memory if possible
    began = time.perf_counter()
    simulation = Simulation(arguments.runs, arguments.workers, arguments.minutes, Path(folder))
    sys.addaudithook(simulation.hear)
    simulation.go()
    real = time.perf_counter() - began
    operations = simulation.operations
    most = max(operations.values()) / BIN
    needed = sum(simulation.lasts.values()) / arguments.workers
    results = {
      "runs": arguments.runs,
      "workers": arguments.workers,
      "lost_runs": sum(simulation.ended[name] == 0 for name in simulation.names),
      "doubled_runs": sum(count > 1 for count in simulation.ended.values()),
      "deaths": simulation.deaths,
      "stalls": simulation.stalls,
      "leases_lost_by_the_living": simulation.lost,
      "hours": simulation.now / 3600,
      "hours_without_failures": needed / 3600,
      "operations": sum(operations.values()),
      "operations_a_second": sum(operations.values()) / simulation.now,
      "operations_a_second_most": most,
      "this_disk_a_second": able,
      "workers_that_fill_this_disk": round(arguments.workers * able / most),
      "seconds_simulating": real,
    }
  print(json.dumps({name: round(x, 3) if isinstance(x, float) else x for name, x in results.items()}, indent=1))


if __name__ == "__main__":
  main()
