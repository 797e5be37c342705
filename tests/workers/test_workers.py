"""Workers share a study's runs: each run ends once, with the same results, even if workers die."""

import concurrent.futures
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from bigmodel import record, study
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import write_json
from bigmodel.study import Between, EarlyStopping, Grid, Halving, Search, Study
from bigmodel.study import plan as plans
from bigmodel.study.plan import Workforce
from bigmodel.train import leases, watch
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest
from bigmodel.workers import execute, pool, worker
from bigmodel.workers.groups import Group
from bigmodel.workers.pool import Workers


def planned(config, folder, count=1):
  the_study = Study("rates", "?", Grid({"optim.lr": (0.001, 0.003, 0.01, 0.03)}), laws=())
  config.train.steps = 10
  prepared = study.prepare(config, the_study, folder)
  plans.write(folder, study.make_plan(prepared, workforce=Workforce(count)))
  write_json(folder / "study.json", msgspec.to_builtins(prepared.about()))
  return prepared


def results(folder):
  return {one.run_id: one.result_sha256 for one in record.collect(folder)}


def test_a_worker_takes_over_the_group_of_a_dead_worker(config, tmp_path):
  """One of two groups is held by a dead worker and taken over; the results are those of one process."""
  prepared = planned(config, tmp_path / "shared", 2)
  groups = [Group(tuple(prepared.runs)[i : i + 2], 0.0) for i in (0, 2)]
  dead = leases.Leases(tmp_path / "shared" / "leases", "dead").claim(groups[0].name)
  began = time.monotonic()
  study.work(prepared, "alive", True, StopRequest(), patience=1.0)
  assert time.monotonic() - began >= 1.0
  assert not dead.held()
  alone = planned(config, tmp_path / "alone", 2)
  study.run_study(alone, True, StopRequest())
  assert results(tmp_path / "shared") == results(tmp_path / "alone")
  assert len(results(tmp_path / "alone")) == 4


def test_the_command_without_workers_respects_leases_that_may_be_alive(config, tmp_path):
  """After the parent was killed, a group that a living worker holds is left to it until its lease is lost."""
  prepared = planned(config, tmp_path, 2)
  first = Group(tuple(prepared.runs)[:2], 0.0)
  held = leases.Leases(tmp_path / "leases", "orphan").claim(first.name)
  looks = []

  class Stop(StopRequest):
    def requested(self):
      looks.append(held.held())
      return len(record.collect(tmp_path)) == 2  # all runs without a lease

  with pytest.raises(Interrupted):
    study.run_study(prepared, True, Stop())
  assert all(looks)
  assert {one.run_id for one in record.collect(tmp_path)} == set(list(prepared.runs)[2:])


def test_two_commands_in_one_folder_share_its_runs(config, tmp_path, monkeypatch):
  planned(config, tmp_path, 2)
  trained, together = [], threading.Barrier(2)

  def train(runs, *rest, **named):
    trained.extend(run.run_id for run in runs)
    together.wait(60)  # each command has a group
    return train_runs(runs, *rest, **named)

  monkeypatch.setattr(execute, "train_runs", train)
  prepared = [planned(config, tmp_path, 2) for _ in range(2)]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    reports = list(pool.map(lambda one: study.run_study(one, True, StopRequest()), prepared))
  assert reports[0]["runs"] == reports[1]["runs"]
  assert {one["status"] for one in reports[0]["runs"]} == {"finished"}
  assert sorted(trained) == sorted(prepared[0].runs)


def test_a_mark_without_a_record_is_removed_after_a_while(config, tmp_path):
  """The record may become visible late, or may not exist."""
  prepared = planned(config, tmp_path, 2)
  plan = study.make_plan(prepared, workforce=Workforce(2))
  for group in plan.groups:
    leases.Leases(tmp_path / "leases", "other").mark_ended(group.name)
  began = time.monotonic()
  study.work(prepared, "w", True, StopRequest(), patience=1.0)
  assert time.monotonic() - began >= 1.0
  assert len(results(tmp_path)) == 4


def test_two_commands_plan_one_at_a_time(tmp_path, caplog):
  inside, leave, order = threading.Event(), threading.Event(), []

  def first():
    with worker.exclusive(tmp_path, "plan", StopRequest()):
      inside.set()
      leave.wait(60)
      order.append("first")

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    done = pool.submit(first)
    inside.wait(60)
    with (
      pytest.raises(Interrupted, match="waiting for another command to finish the plan"),
      worker.exclusive(tmp_path, "plan", Asked(2)),
    ):
      order.append("never")
    assert [one.getMessage().partition(": ")[2] for one in caplog.records] == [
      "waiting for another command to finish the plan"
    ]
    with worker.exclusive(tmp_path, "forecast", StopRequest()):  # a different lock
      leave.set()
    with worker.exclusive(tmp_path, "plan", StopRequest()):
      order.append("second")
    done.result()
  assert order == ["first", "second"]


class Asked(StopRequest):
  """A stop that is requested at the call of this number."""

  def __init__(self, look):
    super().__init__()
    self._left = look

  def requested(self):
    self._left -= 1
    return self._left <= 0


def test_a_run_that_was_set_aside_reruns_even_if_marked_as_ended(config, tmp_path):
  prepared = planned(config, tmp_path, 2)
  study.work(prepared, "one", True, StopRequest(), patience=1.0)
  before = results(tmp_path)
  run = next(iter(prepared.runs.values()))
  (run.folder / "record.json").unlink()
  study.run_study(prepared, True, StopRequest())
  assert results(tmp_path) == before


def test_a_run_whose_lease_is_lost_at_its_end_writes_no_record(config, tmp_path):
  prepared = planned(config, tmp_path)
  run = next(iter(prepared.runs.values()))

  class LostAtTheEnd(StopRequest):
    def lost(self):
      return True

  with Display(0, True) as display, pytest.raises(Interrupted, match="another worker"):
    train_runs([run], prepared.data, display, LostAtTheEnd())
  assert record.read(run.folder) is None
  assert not list((run.folder / "checkpoints").glob("10"))


def test_a_run_whose_lease_is_lost_writes_nothing_when_it_stops(config, tmp_path, monkeypatch):
  """Neither metrics nor status, because the next holder has begun to write there."""
  monkeypatch.setattr(watch, "FLUSH_SECONDS", 0.0)
  monkeypatch.setattr(watch, "FLUSH_SHARE", 1e9)
  config.train.log_every = 1
  prepared = planned(config, tmp_path)
  run = next(iter(prepared.runs.values()))

  class LostAfterTheFirstStep(StopRequest):
    calls = 0
    is_lost = False

    def requested(self):
      self.calls += 1
      if self.calls == 4 and not self.is_lost:
        self.is_lost = True
        (run.folder / "status.json").write_text("of the successor")
      return self.is_lost

    def lost(self):
      return self.is_lost

  stop = LostAfterTheFirstStep()
  with Display(0, True) as display, pytest.raises(Interrupted, match="another worker"):
    train_runs([run], prepared.data, display, stop)
  assert stop.is_lost
  assert (run.folder / "status.json").read_text() == "of the successor"


class InThread:
  """A place whose worker is a thread of this process."""

  def __init__(self, work):
    self._work, self._thread, self._asked = work, None, StopRequest()

  def start(self):
    self._thread = threading.Thread(target=self._run)
    self._thread.start()

  def _run(self):
    with contextlib.suppress(Interrupted):
      self._work(self._asked)

  def poll(self):
    return None if self._thread.is_alive() else 0

  def stop(self):
    self._asked.request()


LOOKS = {
  "halving": Halving(Grid({"optim.lr": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}), first=1 / 9),
  "early stopping": EarlyStopping(Grid({"optim.lr": (1e-6, 3e-3, 1e-2, 3e-2)}), 0.8),
  "search": Search({"optim.lr": Between(1e-4, 1e-1, log=True)}, trials=6, at_once=3),
}


@pytest.mark.parametrize("name", LOOKS)
def test_workers_train_the_rounds_of_adaptive_designs(config, tmp_path, monkeypatch, name):
  """Two workers train all rounds, with the runs and losses of one process, and exit by themselves."""
  if name == "search":
    pytest.importorskip("optuna")
  config.train.update(steps=18, log_every=2)
  of = lambda folder: study.prepare(config, Study("looks", "?", LOOKS[name], laws=()), tmp_path / folder)
  study.run_study(of("alone"), True, StopRequest())
  trained = []

  def train(runs, *rest, **named):
    trained.extend((threading.current_thread().name, run.run_id, rest[-1].until) for run in runs)
    return train_runs(runs, *rest, **named)

  monkeypatch.setattr(execute, "train_runs", train)
  worker = lambda i: InThread(lambda asked: study.work(of("shared"), f"w{i}", True, asked))
  places = [worker(i) for i in range(2)]
  monkeypatch.setattr(pool, "_places", lambda *_: places)
  study.run_study(of("shared"), True, StopRequest(), workers=Workers("local", 2))
  assert not any(place._asked.requested() for place in places)
  alone, shared = ({one.run_id: one for one in record.collect(tmp_path / name)} for name in ("alone", "shared"))
  assert alone.keys() == shared.keys()
  for run_id, one in alone.items():  # packs are others, so sums have another order
    other = shared[run_id]
    assert (other.status, other.steps) == (one.status, one.steps)
    assert other.loss_train == pytest.approx(one.loss_train, rel=1e-5)
  assert len({(run_id, until) for _, run_id, until in trained}) == len(trained)  # each once
  assert len({thread for thread, *_ in trained}) == 2


def test_runs_are_split_between_workers_that_share_a_program(config, tmp_path):
  prepared = planned(config, tmp_path, 3)
  groups = study.make_plan(prepared, workforce=Workforce(3)).groups
  assert [len(group.run_ids) for group in groups] == [2, 2]
  assert [len(group.run_ids) for group in study.make_plan(prepared, workforce=Workforce(4)).groups] == [1] * 4


def test_a_worker_without_a_study_is_refused(config, tmp_path):
  prepared = study.prepare(config, Study("s", "?", Grid({"optim.lr": (0.1,)}), laws=()), tmp_path)
  with pytest.raises(UserError, match="has no plan yet"):
    study.work(prepared, "w", True, StopRequest())
  for text in ("slurmy", "local:0", "local:x"):
    with pytest.raises(UserError, match="--workers"):
      Workers.parse(text)
  assert Workers.parse("local:4") == Workers("local", 4)


def test_the_command_of_a_worker_is_that_of_its_study():
  words = ["sweep", "--config=a.py", "--workers", "local:2", "--workdir=w", "--json", "--retry", "--axis", "a=1,2"]
  command = worker.command_of_workers(words)
  assert command[-5:] == ["sweep", "--config=a.py", "--workdir=w", "--axis", "a=1,2"]
  assert worker.command_of_workers(["study", "--workers=local"])[-1] == "study"


@pytest.mark.slow
def test_a_study_has_the_same_results_if_workers_are_killed(corpus_dir, tmp_path):
  """Every 20 s one of four workers is killed; each of 40 runs ends once, with the results of an undisturbed study."""
  path = tmp_path / "config.py"
  path.write_text(
    "from bigmodel.study import Grid, Study, default_config\n"
    "def get_config(arg=None):\n"
    "  config = default_config()\n"
    f"  config.data.update(name='text_files', path={str(corpus_dir / '*.jsonl')!r}, heldout_fraction=0.2)\n"
    "  config.data.update(context=32, repeat=True)\n"
    "  config.model.update(width=16, layers=1, head_size=8)\n"
    "  config.train.update(steps=1500, batch_size=8, log_every=50, checkpoint_every=50)\n"
    "  config.eval.tokens = 2048\n"
    "  return config\n"
    "def get_study(config):\n"
    "  rates = tuple(1e-3 * 1.4**i for i in range(8))\n"
    "  return Study('kills', '?', Grid({'optim.lr': rates, 'seed': tuple(range(5))}), laws=())\n"
  )
  command = lambda name: [
    sys.executable, "-m", "bigmodel.cli", "study", f"--config={path}", f"--workdir={tmp_path / name}",
    "--workers=local:4",
  ]  # fmt: skip
  subprocess.run(command("calm"), check=True, timeout=900)
  process, dice, kills = subprocess.Popen(command("killed")), random.Random(0), 0
  until = time.monotonic() + 1800
  while process.poll() is None:
    assert time.monotonic() < until
    time.sleep(20)
    found = subprocess.run(["pgrep", "-f", f"{tmp_path / 'killed'}.*--worker=local"], capture_output=True, text=True)
    if victims := [int(word) for word in found.stdout.split()]:
      os.kill(dice.choice(victims), signal.SIGKILL)
      kills += 1
  print(f"{kills} kills")
  assert process.returncode == 0
  assert kills >= 5
  assert len(results(tmp_path / "calm")) == 40
  assert results(tmp_path / "killed") == results(tmp_path / "calm")
