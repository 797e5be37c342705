"""A lease has one holder at a time whatever dies, stalls or is late, and whoever lost one knows."""

import concurrent.futures
import threading
import time

import pytest

from bigmodel.files import UserError
from bigmodel.sweep.leases import Flag, Leases, Lost


def holder(folder):
  """The worker that the newest lease of `run` names, or its last word."""
  newest = max((folder / "run").glob("[0-9]*"), key=lambda path: int(path.name))
  return newest.read_text().split()[0]


def test_one_of_many_takes_a_lease(tmp_path):
  """Many at once, again and again: never two."""
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


def test_a_lease_that_is_renewed_stays_and_one_that_is_given_up_is_free(tmp_path):
  one, other = Leases(tmp_path, "one", 0.3), Leases(tmp_path, "other", 0.3)
  lease = one.claim("run")
  with lease:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
      assert other.claim("run") is None
      assert holder(tmp_path) == "one"
      time.sleep(0.05)
    lease.require()
  assert holder(tmp_path) == "released"
  assert other.claim("run").number == 2


def test_the_lease_of_a_dead_worker_is_taken_over_by_one(tmp_path):
  """By the clock of who waits: what a file says of times plays no part."""
  dead = Leases(tmp_path, "dead", 0.3).claim("run")  # is never renewed
  others = [Leases(tmp_path, f"w{i}", 0.3) for i in range(4)]
  assert [leases.claim("run") for leases in others] == [None] * 4
  time.sleep(0.15)
  assert [leases.claim("run") for leases in others] == [None] * 4  # not yet
  time.sleep(0.3)
  taken = [lease for leases in others if (lease := leases.claim("run")) is not None]
  assert len(taken) == 1
  assert not dead.held()
  with pytest.raises(Lost, match="another worker has taken over"):
    dead.require()
  assert taken[0].number == 2
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


def test_who_wakes_up_late_writes_no_more(tmp_path):
  """A process that was stopped for longer than others wait finds out at its next look, before its next renewal."""
  sleeper = Leases(tmp_path, "sleeper", 0.3).claim("run")
  other = Leases(tmp_path, "other", 0.3)
  other.claim("run")
  time.sleep(0.4)
  assert other.claim("run") is not None
  flag = Flag({"stop": False}, sleeper)
  with pytest.raises(Lost):
    flag["stop"]
  with sleeper:  # its thread does not renew what it has lost, nor gives it up
    time.sleep(0.2)
  assert holder(tmp_path) == "other"
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


def test_a_stop_flag_is_the_one_given_while_the_lease_is_held(tmp_path):
  stop = {"stop": False}
  flag = Flag(stop, Leases(tmp_path, "one").claim("run"))
  assert not flag["stop"]
  stop["stop"] = True
  assert flag["stop"]


def test_an_object_store_cannot_say_who_was_first():
  with pytest.raises(UserError, match="not of an object store"):
    Leases("gs://bucket/study/leases", "one")
