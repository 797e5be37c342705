"""A lease has one holder at a time even if workers die, stall or are late, and a holder notices that it lost it."""

import concurrent.futures
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bigmodel import processes
from bigmodel.errors import UserError
from bigmodel.train.leases import PATIENCE, WINDOW, Leases, Turns, WhileHeld
from bigmodel.train.stop import StopRequest


def holder(folder):
  """Returns the worker that the newest lease of `run` names, or `RELEASED`."""
  newest = max((folder / "run").glob("[0-9]*"), key=lambda path: int(path.name))
  return newest.read_text().split()[0]


def test_only_one_of_many_workers_takes_a_lease(tmp_path):
  """Many workers try at once, repeatedly: never do two succeed."""
  for trial in range(20):
    together = threading.Barrier(8)

    def take(i, trial=trial, together=together):
      leases = Leases(tmp_path, f"w{i}")
      together.wait()
      return leases.claim(f"run-{trial}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      taken = [lease for lease in pool.map(take, range(8)) if lease is not None]
    assert len(taken) == 1
    assert taken[0].held()


def test_a_renewed_lease_is_kept_and_a_released_one_is_free(tmp_path):
  one, other = Leases(tmp_path, "one", 0.3), Leases(tmp_path, "other", 0.3)
  lease = one.claim("run")
  assert lease is not None
  with lease:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
      assert other.claim("run") is None
      assert holder(tmp_path) == "one"
      time.sleep(0.05)
    assert not lease.seems_lost()
  assert holder(tmp_path) == "released"
  assert other.claim("run").number == 2


def test_only_one_worker_takes_over_the_lease_of_a_dead_worker(tmp_path):
  """The clock of the waiting worker decides; times of files do not matter."""
  dead = Leases(tmp_path, "dead", 0.3).claim("run")  # is never renewed
  others = [Leases(tmp_path, f"w{i}", 0.3) for i in range(4)]
  assert [leases.claim("run") for leases in others] == [None] * 4
  time.sleep(0.15)
  assert [leases.claim("run") for leases in others] == [None] * 4  # not yet
  time.sleep(0.3)
  taken = [lease for leases in others if (lease := leases.claim("run")) is not None]
  assert len(taken) == 1
  assert not dead.held()
  assert dead.seems_lost()
  assert taken[0].number == 2
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_lease_of_an_ended_local_process_is_free_immediately(tmp_path):
  """Not that of a living process, or of a process with the same number on another machine."""
  code = f"""
import sys
from bigmodel.train.leases import Leases
leases = Leases({str(tmp_path)!r}, "worker of many words")
print(*[leases.claim(name).number for name in ("a", "b", "c")], flush=True)
sys.stdin.read()"""
  process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "1 1 1\n"
  others = Leases(tmp_path, "other", patience=1e9)
  assert [others.claim(name) for name in "abc"] == [None] * 3
  elsewhere = tmp_path / "c" / "1"
  elsewhere.write_text(elsewhere.read_text().replace(processes._machine(), "0" * 16))
  process.kill()
  os.waitid(
    os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
  )  # the process has ended, and its parent has not collected its exit status
  assert others.claim("a").number == 2
  process.wait()
  assert others.claim("b").number == 2
  assert others.claim("c") is None
  reborn = tmp_path / "a" / "2"  # another process that had this one's number
  assert Leases(tmp_path, "third", patience=1e9).claim("a") is None
  reborn.write_text(reborn.read_text() + "0")
  assert others.claim("a").number == 3


def test_a_holder_that_wakes_up_late_does_not_write(tmp_path):
  """A process that was stopped for longer than `patience` notices at its next check, before its next renewal."""
  sleeper = Leases(tmp_path, "sleeper", 0.3).claim("run")
  other = Leases(tmp_path, "other", 0.3)
  other.claim("run")
  time.sleep(0.4)
  assert other.claim("run") is not None
  stop = WhileHeld(StopRequest(), sleeper)
  assert stop.requested()
  assert stop.lost()
  assert sleeper is not None
  with sleeper:  # its thread neither renews nor releases a lost lease
    time.sleep(0.2)
  assert holder(tmp_path) == "other"
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


def test_a_stop_is_forwarded_while_the_lease_is_held(tmp_path):
  stop = StopRequest()
  held = WhileHeld(stop, Leases(tmp_path, "one").claim("run"))
  assert not held.requested()
  stop.request()
  assert held.requested()
  assert not held.lost()


def test_object_stores_are_refused():
  with pytest.raises(UserError, match="not of an object store"):
    Leases("gs://bucket/study/leases", "one")


def test_no_run_is_lost_or_repeated_if_workers_die_stall_and_wake_up_late(tmp_path):
  """Runs the simulation of `benchmarks/leases.py` with a few workers."""
  spec = importlib.util.spec_from_file_location("leases", Path(__file__).parents[2] / "benchmarks" / "leases.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  vars(module).update(DIES=600.0, STALLS=900.0)
  simulation = module.Simulation(40, 8, 4.0, tmp_path)
  simulation.go()
  assert [simulation.ended[name] for name in simulation.names] == [1] * 40
  assert simulation.deaths > 5
  assert simulation.lost > 0


@pytest.mark.parametrize("dead", [1, 80])
def test_a_turn_costs_the_same_however_many_runs_others_hold(tmp_path, dead):
  """An idle worker reads a few leases, others once these were renewed, and takes over a dead one.

  If many are dead, it waits for those that it saw first, without reading others.
  """
  clock, looks = [0.0], []

  class Counted(Leases):
    def claim(self, name):
      looks.append(name)
      return super().claim(name)

  names = [f"{i:03d}" for i in range(160)]
  held = [Leases(tmp_path, "other", clock=lambda: clock[0]).claim(name) for name in names]
  lost = held[:: 160 // dead]
  turns = Turns(Counted(tmp_path, "idle", clock=lambda: clock[0]), names, lambda name: False, lambda name: True)
  seen, each = set(), PATIENCE / 3
  while (taken := turns.next())[1] is None:
    assert len(looks) == WINDOW
    seen |= {*looks}
    looks.clear()
    for lease in held:
      if lease not in lost:
        lease.beat()
    clock[0] += each
    assert clock[0] < 100 * each
  assert taken[0] in names[:: 160 // dead]
  assert not held[names.index(taken[0])].held()
  if dead == 1:  # all were read twice, and the dead one until `patience` was over
    assert clock[0] <= (2 * len(names) / WINDOW + 4) * each
    assert len(seen) > WINDOW
  else:
    assert clock[0] <= PATIENCE + each


def test_an_ended_run_is_marked_once_and_not_read_again(tmp_path):
  asked, names = [], ["a", "b", "c"]
  ended = lambda name: asked.append(name) or True
  assert Turns(Leases(tmp_path, "one"), names, ended, lambda name: True).next() == ("", None, 0.0)
  assert sorted(asked) == names
  asked.clear()
  assert Turns(Leases(tmp_path, "two"), names, ended, lambda name: True).next() == ("", None, 0.0)
  assert not asked
  Leases(tmp_path, "parent").forget_ended()
  Turns(Leases(tmp_path, "three"), names, lambda name: False, lambda name: True).next()
  assert Leases(tmp_path, "three").ended() == set()
