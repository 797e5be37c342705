"""A failure of one process ends all processes of a job, soon and with one exit code."""

import threading
import time

import pytest

from bigmodel.parallel import job
from bigmodel.parallel.job import Job


class Service:
  """JAX's coordination service, in this process."""

  def __init__(self, processes):
    self.values, self.barrier = {}, threading.Barrier(processes)

  def key_value_set(self, key, value, allow_overwrite=False):
    if key in self.values and not allow_overwrite:
      raise RuntimeError("ALREADY_EXISTS")
    self.values[key] = value

  def key_value_try_get(self, key):
    return self.values[key]

  def wait_at_barrier(self, name, timeout_in_ms):
    self.barrier.wait(timeout_in_ms / 1000)


class Ended(BaseException):
  pass


@pytest.fixture
def jobs(monkeypatch):
  """`jobs(n)`: the processes of a job, and a list of (process, exit code) in the order in which they end."""
  monkeypatch.setattr(job, "POLL_SECONDS", 0.2)
  monkeypatch.setattr(job, "NOTICE_SECONDS", 1.0)
  monkeypatch.setattr(threading, "excepthook", lambda caught: None)

  def start(processes):
    service, ended = Service(processes), []

    def end_of(process):
      def end(code):
        ended.append((process, code))
        raise Ended

      return end

    return [Job(service, i, processes, end_of(i)) for i in range(processes)], ended

  return start


def until(condition, seconds=10):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize("failing", [0, 2])
def test_one_failure_ends_all_processes_with_its_exit_code(jobs, capsys, failing):
  processes, ended = jobs(3)
  with pytest.raises(Ended):
    processes[failing].fail(2, "config.optim.lr: -1 is not positive")
  until(lambda: len(ended) == 3)
  assert sorted(ended) == [(0, 2), (1, 2), (2, 2)]
  assert ended[-1][0] == 0  # JAX aborts the others once process 0 is gone
  message = f"bigmodel: process {failing} of this job failed: config.optim.lr: -1 is not positive"
  assert capsys.readouterr().err.splitlines() == [message] * 2


def test_the_first_of_several_failures_decides_the_exit_code(jobs):
  """A process that loses its connection to a failed one fails for that reason."""
  processes, ended = jobs(2)
  first = threading.Thread(target=processes[1].fail, args=(2, "no such file"))
  first.start()
  until(lambda: job.FAILURE in processes[0]._client.values)
  with pytest.raises(Ended):
    processes[0].fail(1, "connection closed by peer")
  first.join()
  assert sorted(ended) == [(0, 2), (1, 2)]


def test_a_process_that_cannot_notice_does_not_keep_the_others(jobs, monkeypatch):
  processes, ended = jobs(2)
  processes[0]._closed.set()
  with pytest.raises(Ended):
    processes[1].fail(1, "out of memory")
  assert ended == [(1, 1)]


def test_processes_leave_together_and_still_notice_a_failure_meanwhile(jobs):
  processes, ended = jobs(2)
  waiting = threading.Thread(target=processes[0].leave)
  waiting.start()
  time.sleep(0.1)
  assert waiting.is_alive()
  processes[1].leave()
  waiting.join()
  assert not ended
  assert not any(process._thread.is_alive() for process in processes)
