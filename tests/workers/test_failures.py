"""Runs fail for good only if they fail alone; a worker on a bad machine stops; seals list failed runs.

These tests train nothing: each test decides whether runs end or fail.
"""

import concurrent.futures
import contextlib
import errno
import threading
import time

import jax
import msgspec
import pytest

from bigmodel import record, study
from bigmodel.errors import Interrupted, UnfitWorker, UserError
from bigmodel.files import read_json
from bigmodel.planner import price
from bigmodel.study import Grid, IsoFlop, Study, Target
from bigmodel.train import results
from bigmodel.train.display import Display
from bigmodel.train.run import open_folder, write_provenance
from bigmodel.train.stop import StopRequest
from bigmodel.workers import execute, failures
from bigmodel.workers import pool as pools
from bigmodel.workers.groups import Group
from bigmodel.workers.pool import Workers
from bigmodel.workers.worker import Worker


def end(run, status="finished"):
  """Ends a run as if it had trained, with the loss of a law."""
  open_folder(run)
  write_provenance(run)
  unevaluated = results.unevaluated(run, run.steps)
  tokens = run.steps * unevaluated.batch_tokens
  loss = 1.0 + 20 / unevaluated.params_total**0.3 + 30 / tokens**0.3
  ended = msgspec.structs.replace(unevaluated, status=status, tokens=tokens, steps=run.steps, loss_eval=loss)
  results.end(run, ended)


class Training:
  """Takes the place of `train_runs`: ends runs, but fails where `fault(runs, worker)` returns an exception."""

  def __init__(self, fault):
    self._fault, self._lock = fault, threading.Lock()
    self.calls = []

  def __call__(self, runs, data, display, stop, options):
    left = [run for run in runs if record.read(run.folder) is None]
    worker = threading.current_thread().name
    with self._lock:
      self.calls.append((worker, [run.run_id for run in left]))
    time.sleep(0.05)
    if (error := self._fault(left, worker)) is not None:
      raise error
    for run in left:
      end(run)


@pytest.fixture
def prepared(config, tmp_path):
  """Twelve runs that are not trained."""
  config.train.steps = 10
  axes = {"optim.lr": (0.001, 0.003, 0.01), "seed": (0, 1, 2, 3)}
  return study.prepare(config, Study("failures", "?", Grid(axes), laws=()), tmp_path)


def groups_of(prepared, size):
  ids = list(prepared.runs)
  return [Group(tuple(ids[i : i + size]), 1.0) for i in range(0, len(ids), size)]


def work(prepared, groups, name="parent", patience=1.0):
  threading.current_thread().name = name
  with Display(0, True) as display:
    Worker(name, prepared.workdir, prepared.data, display, StopRequest(), patience).train(groups, prepared.runs)


def statuses(prepared):
  return {one.run_id: one.status for one in record.collect(prepared.workdir)}


def test_one_bad_machine_of_four_fails_no_run_and_its_worker_stops(prepared, monkeypatch):
  tries, failed_twice = [], threading.Event()

  def fault(runs, worker):
    if worker != "w0":
      failed_twice.wait(30)  # the other workers are slow
      return None
    tries.append(runs)
    if len(tries) == 2:
      failed_twice.set()
    return RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE")

  training = Training(fault)
  monkeypatch.setattr(execute, "train_runs", training)
  groups = groups_of(prepared, 2)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    working = [pool.submit(work, prepared, groups, f"w{i}") for i in range(4)]
    with pytest.raises(UnfitWorker, match=r"w0@.* failed here one after another and succeeded on other .*ECC"):
      working[0].result()
    for other in working[1:]:
      other.result()
  assert {*statuses(prepared).values()} == {"finished"}
  assert len(statuses(prepared)) == 12
  assert len(tries) >= 2


def test_a_bad_machine_fails_no_run_while_the_only_other_worker_is_busy_for_long(prepared, monkeypatch):
  """By then it has failed with all other runs; each second attempt waits for the other worker."""
  began, idle = threading.Event(), threading.Event()

  def fault(runs, worker):
    if worker != "w0":
      began.set()
      idle.wait(30)
      return None
    began.wait(30)
    return RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE")

  training = Training(fault)
  monkeypatch.setattr(execute, "train_runs", training)
  groups = groups_of(prepared, 1)[:4]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    other = pool.submit(work, prepared, groups, "w1", 0.6)
    began.wait(30)
    bad = pool.submit(work, prepared, groups, "w0", 0.6)
    time.sleep(2.5)  # several times `patience`
    idle.set()
    with pytest.raises(UnfitWorker):
      bad.result()
    other.result()
  assert [*statuses(prepared).values()] == ["finished"] * 4
  tried = [ids for worker, ids in training.calls if worker == "w0"]
  assert len(tried) == 3 == len({*map(tuple, tried)})


def test_failures_of_several_rounds_show_that_a_machine_is_bad(prepared, monkeypatch):
  """One group fails here in each round; runs that fail for good here do not count as a success."""
  training = Training(lambda runs, worker: RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE"))
  monkeypatch.setattr(execute, "train_runs", training)
  groups = groups_of(prepared, 1)
  with (
    Display(0, True) as display,
    Worker("w0", prepared.workdir, prepared.data, display, StopRequest(), 1.0).present() as worker,
  ):
    for group in groups[:2]:
      worker.train([group], prepared.runs)
      assert [*statuses(prepared).values()][-1] == "failed"
    execute.set_failed_aside(prepared.workdir)
    for group in groups[:2]:
      end(prepared.runs[group.run_ids[0]])  # as another worker would
    with pytest.raises(UnfitWorker):
      worker.train(groups[2:3], prepared.runs)


def test_a_worker_without_a_sign_of_life_is_not_waited_for(tmp_path):
  now = [0.0]
  one, other = (failures.Failures(tmp_path, name, 100.0, lambda: now[0]) for name in ("one", "other"))
  other.__enter__()
  with one:
    one.add("group", ["a", "b"], OSError(), lambda: False)
    waits = lambda *run_ids: one.waits_for_others("group", lambda: run_ids)
    assert waits("a", "b")
    assert not waits("a", "c")  # c has not been tried by this worker
    now[0] += 99.0
    other._beat()
    assert waits("a", "b")
    now[0] += 99.0
    assert waits("a", "b")
    now[0] += 2.0
    assert not waits("a", "b")
    other._beat()
    assert waits("a", "b")
    other.add("group", ["a"], OSError(), lambda: False)
    assert not waits("a", "b")
    assert waits("b")
    other.__exit__()
    assert not waits("b")


def test_a_transient_failure_costs_one_retry(prepared, monkeypatch):
  """Also if there is no other worker."""
  errors = [OSError(errno.ESTALE, "Stale file handle")]
  training = Training(lambda runs, worker: errors.pop() if errors else None)
  monkeypatch.setattr(execute, "train_runs", training)
  work(prepared, groups_of(prepared, 12))
  assert {*statuses(prepared).values()} == {"finished"}
  assert [len(ids) for _, ids in training.calls] == [12, 12]


def test_members_of_a_pack_that_runs_out_of_memory_train_alone(prepared, monkeypatch):
  full = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 98765432 bytes")
  training = Training(lambda runs, worker: full if len(runs) > 1 else None)
  monkeypatch.setattr(execute, "train_runs", training)
  work(prepared, groups_of(prepared, 4))
  assert {*statuses(prepared).values()} == {"finished"}
  assert sorted(len(ids) for _, ids in training.calls) == [1] * 12 + [4] * 3  # each pack once


def test_a_run_that_fails_alone_fails_and_the_others_of_its_pack_do_not(prepared, monkeypatch):
  """A pack is tried twice, then each member alone, the faulty one twice; also without leases, as in object stores."""
  bad = list(prepared.runs)[1]
  training = Training(lambda runs, worker: ValueError("bad run") if bad in [r.run_id for r in runs] else None)
  monkeypatch.setattr(execute, "train_runs", training)
  groups = groups_of(prepared, 4)
  work(prepared, groups[:2])
  with Display(0, True) as display:
    execute.run_groups(groups, prepared.runs, prepared.data, display, StopRequest(), prepared.workdir)
  found = statuses(prepared)
  assert len(found) == 12
  assert [run_id for run_id, status in found.items() if status == "failed"] == [bad]
  assert record.read(prepared.runs[bad].folder).error == "ValueError: bad run"
  assert [len(ids) for _, ids in training.calls if bad in ids] == [4, 4, 1, 1]
  assert all(len(ids) == 4 or ids == [ids[0]] for _, ids in training.calls)
  execute.set_failed_aside(prepared.workdir)
  training._fault = lambda runs, worker: None
  work(prepared, groups)
  assert {*statuses(prepared).values()} == {"finished"}
  assert len(training.calls[-1][1]) == 1


def test_errors_that_a_retry_cannot_fix_are_raised_immediately(prepared, monkeypatch):
  training = Training(lambda runs, worker: UserError("config.train.steps: -1 is not positive"))
  monkeypatch.setattr(execute, "train_runs", training)
  with pytest.raises(UserError):
    work(prepared, groups_of(prepared, 4))
  assert len(training.calls) == 1
  assert not statuses(prepared)


def test_a_worker_that_lost_its_lease_records_nothing_and_continues(prepared, monkeypatch):
  """Errors after that are ignored, because the folders belong to the next holder."""
  groups, messages = groups_of(prepared, 6), []
  stolen = groups[0].name

  def fault(runs, worker):
    lease = prepared.workdir / "leases" / stolen / "1"
    if runs[0].run_id != stolen or not lease.exists():
      return None
    lease.rename(lease.parent / "2")  # as a worker does that takes over
    return FileNotFoundError("checkpoints/10 is gone")

  monkeypatch.setattr(execute, "train_runs", Training(fault))
  monkeypatch.setattr(Display, "say", lambda self, text: messages.append(text))
  work(prepared, groups)
  assert messages[0] == f"{stolen}: another worker has taken over; this worker continues with other runs"
  assert not (prepared.workdir / "failures").exists()
  assert {*statuses(prepared).values()} == {"finished"}


@pytest.mark.parametrize("broken", ["device", "disk"])
def test_a_worker_whose_self_check_fails_stops_without_a_record(prepared, monkeypatch, broken):
  monkeypatch.setattr(execute, "train_runs", Training(lambda runs, worker: RuntimeError("NCCL: unhandled error")))
  if broken == "device":
    real = jax.numpy.matmul
    monkeypatch.setattr(jax.numpy, "matmul", lambda *given, **named: real(*given, **named).at[3, 5].add(1))
  else:
    monkeypatch.setattr(failures, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    monkeypatch.setattr(failures.Failures, "__enter__", lambda self: self)
    monkeypatch.setattr(failures.Failures, "__exit__", lambda *_: None)
  says = "multiplies two matrices wrongly" if broken == "device" else "cannot be written and read .*I/O error"
  with pytest.raises(UnfitWorker, match=rf"{says}.*NCCL"):
    work(prepared, groups_of(prepared, 4))
  assert not statuses(prepared)
  monkeypatch.undo()
  assert failures.self_check(prepared.workdir) is None


class InThread:
  """A place whose worker is a thread of this process."""

  log = "here"

  def __init__(self, name, work):
    self._name, self._work, self._thread, self._asked, self._code = name, work, None, StopRequest(), None

  def start(self):
    self._code = None
    self._thread = threading.Thread(target=self._run, name=self._name)
    self._thread.start()

  def _run(self):
    try:
      with contextlib.suppress(Interrupted):
        self._work(self._asked)
      self._code = 0
    except UnfitWorker:
      self._code = pools.UNFIT

  def poll(self):
    return None if self._thread.is_alive() else self._code

  def stop(self):
    self._asked.request()


@pytest.fixture
def with_target(config, tmp_path):
  """Returns `with_target(folder, ...)`, which prepares a study of nine runs and a target."""
  config.train.steps, config.data.repeat = 0, True
  sizes = [{"model.width": w, "model.head_size": w // 2} for w in (8, 12, 16)]
  design = IsoFlop((1e8, 2e8, 4e8), sizes)
  settings = lambda params, tokens: {"optim.lr": 0.01}
  the_study = lambda **fields: Study("t", "?", design, settings, target=Target(4e9, sizes[1:]), **fields)
  return lambda folder, **fields: study.prepare(config, the_study(**fields), tmp_path / folder)


@pytest.mark.parametrize("kind", ["slurm", "local"])
def test_on_a_cluster_the_command_trains_nothing_and_times_one_small_run(with_target, monkeypatch, kind):
  """A worker also trains the target, which carries the seal; workers on this machine leave it to the command."""
  training, timed = Training(lambda runs, worker: None), []
  monkeypatch.setattr(execute, "train_runs", training)
  monkeypatch.setattr(price, "_measure", lambda run, members: timed.append((run.run_id, members)) or (1.0, 1e-3))
  prepared = with_target("study")
  worker = lambda i: InThread(f"w{i}", lambda asked: study.work(with_target("study"), f"w{i}", True, asked, 1.0))
  monkeypatch.setattr(pools, "_places", lambda *_: [worker(i) for i in range(2)])
  here = threading.current_thread().name = "command"
  report = study.run_study(prepared, True, StopRequest(), workers=Workers(kind, 2))
  target = report["forecast"]["target"]["run_id"]
  by = {run_id: worker for worker, ids in training.calls for run_id in ids}
  assert len(by) == sum(len(ids) for _, ids in training.calls) == 10
  assert {*by.values()} <= {"w0", "w1", here}
  assert [run_id for run_id, worker in by.items() if worker == here] == ([] if kind == "slurm" else [target])
  provenance = read_json(prepared.workdir / "runs" / target / "provenance.json")
  assert provenance["forecast_sha256"] == report["forecast"]["sha256"]
  smallest = min(prepared.runs.values(), key=price.flops_per_step).run_id
  assert (timed == [(smallest, 1)]) == (kind == "slurm")


def test_on_a_cluster_another_worker_retries_the_target(with_target, monkeypatch):
  """The first worker has a bad machine; another worker stays for the retry."""
  monkeypatch.setattr(price, "_measure", lambda run, members: (1.0, 1e-3))
  tries = []

  def fault(runs, worker):
    if not any(run.provenance for run in runs):
      return None
    tries.append(worker)
    if worker != tries[0]:
      return None
    time.sleep(2.5)  # by then, idle workers have seen that they are not needed
    return RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE")

  monkeypatch.setattr(execute, "train_runs", Training(fault))
  worker = lambda i: InThread(f"w{i}", lambda asked: study.work(with_target("study"), f"w{i}", True, asked, 1.0))
  places = [worker(i) for i in range(4)]
  monkeypatch.setattr(pools, "_places", lambda *_: places)
  report = study.run_study(with_target("study"), True, StopRequest(), workers=Workers("slurm", 4))
  assert report["forecast"]["actual"] is not None
  assert len(tries) == 2 == len({*tries})


def test_no_forecast_is_sealed_while_fitted_runs_have_failed(with_target, monkeypatch):
  """Unless the study accepts failed runs. The seal lists failed runs, and diverged runs separately."""
  monkeypatch.setattr(price, "_measure", lambda run, members: (1.0, 1e-3))
  prepared = with_target("study")
  failed, diverged = list(prepared.runs)[2:4]

  def fault(runs, worker):
    for run in runs:
      if run.run_id == diverged:
        end(run, "diverged")
    return MemoryError("host") if failed in [run.run_id for run in runs] else None

  monkeypatch.setattr(execute, "train_runs", Training(fault))
  go = lambda retry=False, **fields: study.run_study(with_target("study", **fields), True, StopRequest(), retry)
  says = rf"not sealed: 1 of 9 fitted runs have failed: {failed} \(MemoryError: host\).*--retry-failed.*accept_failed"
  with pytest.raises(UserError, match=says):
    go()
  assert not (prepared.workdir / "forecasts").exists()
  assert (prepared.workdir / "report.html").exists()
  report = go(accept_failed=True)
  sealed = read_json(prepared.workdir / "forecasts" / "target.json")
  assert [row["run_id"] for row in sealed["failed"]] == [failed]
  assert [row["run_id"] for row in sealed["diverged"]] == [diverged]
  assert report["forecast"]["actual"] is not None


def test_a_pool_continues_without_a_worker_that_is_unfit_or_keeps_dying(monkeypatch, tmp_path):
  """An unfit worker on this machine is not restarted, and no more workers start than there are groups left."""

  class Place:
    log = "here"

    def __init__(self, code):
      self.code, self.starts = code, 0

    def start(self):
      self.starts += 1

    def poll(self):
      return self.code

  clock = [0.0]
  monkeypatch.setattr(pools.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(pools, "_Process", Place)
  messages = []
  display = type("Told", (), {"say": lambda self, text: messages.append(text)})()
  pool = pools.Pool(Workers("local", 4), [], tmp_path, display, StopRequest())
  places = [Place(pools.UNFIT), Place(1), Place(None), Place(None)]
  monkeypatch.setattr(pools, "_places", lambda *_: places)
  watch = type("Watch", (), {"progress": (0, 0), "left": 3})()
  for _ in range(400):
    pool._keep_running(watch)
    clock[0] += 1.0
  assert [place.starts for place in places] == [1, 11, 1, 1]
  assert [text.split(";")[0] for text in messages] == [
    "a worker found this machine unfit to train",
    "a worker died 10 times in a row, the last time with code 1",
  ]
  lost = pools.Pool(Workers("local", 1), [], tmp_path, display, StopRequest())
  monkeypatch.setattr(pools, "_places", lambda *_: [Place(pools.UNFIT)])
  lost._keep_running(watch)
  with pytest.raises(RuntimeError, match="unfit to train"):
    lost._keep_running(watch)
