"""The supervisor restarts processes that died, up to a limit; the watchdog ends processes that hang."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from bigmodel.train.supervise import Watchdog, has_record, supervise

SCRIPT = """
import pathlib, sys, os, signal
counter = pathlib.Path({counter!r})
n = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(n + 1))
{body}
"""


def run(tmp_path, body, restarts, done=lambda: 0):
  counter = tmp_path / "count"
  messages = []
  code = supervise(
    [sys.executable, "-c", SCRIPT.format(counter=str(counter), body=body)],
    restarts,
    done,
    first_wait=0.01,
    say=lambda text, **_: messages.append(text),
  )
  return code, int(counter.read_text()), messages


@pytest.fixture(autouse=True)
def handlers():
  kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in kept.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_final_exit_codes_are_passed_on(tmp_path, code):
  assert run(tmp_path, f"sys.exit({code})", 3)[:2] == (code, 1)


def test_a_dead_process_is_restarted(tmp_path):
  code, starts, messages = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if n < 2 else None", 3)
  assert (code, starts) == (0, 3)
  assert messages[0] == "the process was killed by SIGKILL; restart 1 of 3 in 0.01 s"
  assert "restart 2 of 3 in 0.02 s" in messages[1]


def test_an_ended_run_is_not_restarted(tmp_path):
  """For example a diverged run, which exits with 1."""
  (tmp_path / "record.json").write_text("{}")
  started = tmp_path / "started"
  command = [sys.executable, "-c", f"open({str(started)!r}, 'a').write('x'); raise SystemExit(1)"]
  over = functools.partial(has_record, tmp_path)
  assert supervise(command, 3, lambda: 0, first_wait=0.01, say=lambda *_, **__: None, is_over=over) == 1
  assert started.read_text() == "x"


def test_the_supervisor_gives_up_without_progress(tmp_path):
  code, starts, messages = run(tmp_path, "sys.exit(1)", 2)
  assert (code, starts) == (1, 3)
  assert messages[-1] == "the process ended with code 1; giving up after 2 restarts without progress"


def test_progress_resets_the_count_of_restarts(tmp_path):
  counter = tmp_path / "count"
  code, starts, _ = run(
    tmp_path, "sys.exit(1 if n < 6 else 0)", 1, done=lambda: counter.exists() and counter.read_text()
  )
  assert (code, starts) == (0, 7)


def test_signals_reach_the_child_and_end_the_supervision(tmp_path):
  program = (
    "from bigmodel.train.supervise import supervise; import sys;"
    "sys.exit(supervise([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'], 5, lambda: 0))"
  )
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ)
  assert process.stdout is not None
  process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 75


def test_the_watchdog_ends_a_process_only_if_no_step_follows_the_first():
  ends = []
  dog = Watchdog(0.2, ends.append)
  time.sleep(0.4)  # compiling
  assert not ends
  for _ in range(6):
    dog.beat()
    time.sleep(0.05)
  assert not ends
  time.sleep(0.5)
  assert ends == [1]
  idle = Watchdog(0.1, ends.append)
  idle.beat()
  idle.close()
  time.sleep(0.3)
  assert ends == [1]
