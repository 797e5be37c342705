"""One command at a time trains the run of a folder; others are refused, or take over from a dead one."""

import os
import subprocess
import sys
import threading
import time

import pytest

from bigmodel import processes, record
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import absolute
from bigmodel.train import ownership, single_run
from bigmodel.train.leases import Leases
from bigmodel.train.stop import StopRequest


def test_a_second_command_is_refused_and_names_the_first_until_that_ends(config, tmp_path):
  """The refused command changes nothing in the folder of the first, which may not have written its config yet."""
  config.train.steps = 2
  with ownership.exclusive(absolute(tmp_path), StopRequest()):
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on \S+ since 2\d\d\d-") as caught:
      single_run.train_single_run(config, tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == files
  assert single_run.train_single_run(config, tmp_path, quiet=True).finished
  with ownership.exclusive(absolute(tmp_path), StopRequest()):  # an ended run is only read
    assert single_run.train_single_run(config, tmp_path, quiet=True) == record.read(tmp_path)


def test_a_run_of_a_study_at_work_is_refused(config, tmp_path):
  folder = tmp_path / "runs" / "one"
  folder.mkdir(parents=True)
  lease = Leases(tmp_path / "leases", "worker").claim("group")
  assert lease is not None
  with lease:
    with ownership.exclusive(absolute(folder), StopRequest()):
      pass  # no study
    (tmp_path / "study.json").write_text("{}")
    with (
      pytest.raises(UserError, match="one belongs to a study that is being trained"),
      ownership.exclusive(absolute(folder), StopRequest()),
    ):
      pass
  with ownership.exclusive(absolute(folder), StopRequest()):
    pass


def test_a_command_takes_over_at_once_from_a_process_that_was_killed_on_this_machine(tmp_path):
  code = f"""
import os, signal
from bigmodel.files import absolute
from bigmodel.train import ownership
from bigmodel.train.stop import StopRequest
with ownership.exclusive(absolute({str(tmp_path)!r}), StopRequest()):
  os.kill(os.getpid(), signal.SIGKILL)
"""
  assert subprocess.run([sys.executable, "-c", code]).returncode == -9
  began = time.monotonic()
  with ownership.exclusive(absolute(tmp_path), StopRequest()) as stop:
    assert not stop.requested()
    assert not stop.lost()
  assert time.monotonic() - began < 5


def held_elsewhere(folder, monkeypatch, patience):
  """A lease of a process on another machine."""
  with monkeypatch.context() as patched:
    patched.setattr(processes, "_machine", lambda: "elsewhere")
    lease = Leases(folder / "leases", "process 7 on elsewhere since today", patience).claim(ownership.NAME)
  assert lease is not None
  return lease


def test_a_command_on_another_machine_is_named_if_it_is_alive_and_replaced_if_it_is_silent(tmp_path, monkeypatch):
  with (
    held_elsewhere(tmp_path, monkeypatch, 0.6) as lease,
    pytest.raises(UserError, match="process 7 on elsewhere since today; wait until it ends, or stop it"),
    ownership.exclusive(absolute(tmp_path), StopRequest(), patience=5.0),
  ):
    pass
  silent = held_elsewhere(tmp_path, monkeypatch, 0.6)
  assert silent.number == lease.number + 1
  with ownership.exclusive(absolute(tmp_path), StopRequest(), patience=0.6):
    assert not silent.held()


def test_waiting_for_a_silent_command_can_be_interrupted(tmp_path, monkeypatch):
  held_elsewhere(tmp_path, monkeypatch, 60.0)
  stop = StopRequest()
  threading.Timer(0.3, stop.request).start()
  with pytest.raises(Interrupted, match="stopped while waiting"), ownership.exclusive(absolute(tmp_path), stop):
    pass
