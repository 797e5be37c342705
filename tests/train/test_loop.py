"""Runs that are killed, interrupted or diverge: nothing is lost, and results are those of whole runs."""

import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bigmodel import errors, optim, record, study
from bigmodel.data import pipeline
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import absolute, read_json
from bigmodel.train import best, metrics, pack, programs, results, weights
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints, integrity
from bigmodel.train.display import Display
from bigmodel.train.evaluate import evaluate
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.member import open_member
from bigmodel.train.programs import lanes
from bigmodel.train.run import Run, interruptible, run_id
from bigmodel.train.schedule import Dispatched
from bigmodel.train.stop import StopRequest
from bigmodel.train.watch import Clock, Watch

QUIET = dict(quiet=True)


def train(config, corpus, folder, stop=None):
  (sealed,) = train_runs([Run(config, absolute(folder))], corpus, Display(quiet=True), stop or StopRequest())
  return sealed


def test_a_run_learns_and_its_record_is_complete(resolved, tmp_path):
  config, corpus = resolved
  config.optim.lr = 0.02
  sealed = train(config, corpus, tmp_path)
  assert sealed.status == "finished"
  rows = metrics.read(tmp_path)
  assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
  assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
  assert sealed.tokens == 30 * 8 * 32 == sealed.batch_tokens * sealed.steps
  assert sealed.flops_6nd == 6 * sealed.params_total * sealed.tokens
  assert {p.name for p in tmp_path.iterdir()} == {
    "config.json", "data.json", "provenance.json", "status.json", "record.json", "metrics.jsonl", "checkpoints",
  }  # fmt: skip
  assert read_json(tmp_path / "data.json")["sha256"] == config.data.sha256
  assert record.read(tmp_path) == sealed


def test_the_share_of_choices_that_experts_drop_is_logged_and_recorded(resolved, tmp_path):
  """With half of the slots that even choices need, at least half of the choices are dropped."""
  config, corpus = resolved
  config.model.update(experts=4, experts_per_token=2, expert_capacity=0.5)
  config.train.update(steps=4, accumulate=2, log_every=2)
  sealed = train(config, corpus, tmp_path)
  rows = metrics.read(tmp_path)
  assert sealed.metrics["dropped_choices"] == rows[-1]["dropped_choices"]
  assert all(0.5 <= row["dropped_choices"] < 1 <= row["balance_loss"] for row in rows)
  assert all(row["router_z_loss"] > 0 for row in rows)


@pytest.mark.parametrize("looks", [0, 7, 25])
def test_an_interrupted_run_resumes_to_the_same_bits_and_rows(resolved, tmp_path, looks, stop_at):
  config, corpus = resolved
  whole = train(config, corpus, tmp_path / "whole")
  with pytest.raises(Interrupted, match="saved at step"):
    train(config, corpus, tmp_path / "cut", stop_at(looks))
  saved = max(int(p.name) for p in (tmp_path / "cut" / "checkpoints").iterdir())
  assert saved == looks + 1
  assert json.loads((tmp_path / "cut" / "status.json").read_text())["state"] == "interrupted"
  assert record.read(tmp_path / "cut") is None
  again = train(config, corpus, tmp_path / "cut")
  assert again.result_sha256 == whole.result_sha256
  assert again.params_sha256 == whole.params_sha256
  facts = lambda folder: [(r["step"], r["loss"], r["grad_norm"]) for r in metrics.read(folder)]
  assert facts(tmp_path / "cut") == facts(tmp_path / "whole")


def test_a_run_whose_last_checkpoint_cannot_be_written_has_no_record(resolved, tmp_path, monkeypatch):
  """The run is saved while it is evaluated; here the save fails after the evaluation has finished."""
  config, corpus = resolved
  config.train.checkpoint_every = 1000

  def fails(*_):
    time.sleep(3)
    raise OSError("broken")

  monkeypatch.setattr(integrity, "write_seal", fails)
  with pytest.raises(errors.CheckpointError, match="broken"):
    train(config, corpus, tmp_path)
  assert record.read(tmp_path) is None


def test_a_pack_that_cannot_be_saved_stops_evaluating(resolved, tmp_path, monkeypatch):
  """The first members are evaluated during the save; otherwise the process would wait for the evaluation."""
  config, corpus = resolved
  config.train.update(steps=4, checkpoint_every=1000)
  began, gave_up = threading.Event(), threading.Event()

  def endless(program, params, config, rows, beat):
    began.set()
    try:
      for _ in range(600):
        time.sleep(0.1)
        beat()
    except concurrent.futures.CancelledError:
      gave_up.set()
      raise

  def full(*_):
    assert began.wait(60)
    raise errors.CheckpointError("the disk is full")

  monkeypatch.setattr(pack, "measure", endless)
  monkeypatch.setattr(pack.Pack, "save", full)
  runs = [Run(study.with_overrides(config, {"seed": i}), absolute(tmp_path / str(i))) for i in range(2)]
  with pytest.raises(errors.CheckpointError, match="the disk is full"):
    train_runs(runs, corpus, Display(quiet=True), StopRequest())
  assert gave_up.wait(10)
  assert not any(record.read(run.folder) for run in runs)


def test_a_run_past_a_new_rung_returns_to_it_and_pauses(resolved, tmp_path, stop_at):
  """This happens if a rung is added to the design after a run has passed its step."""
  config, corpus = resolved
  runs = [Run(config, absolute(tmp_path / name)) for name in ("fresh", "past")]
  with pytest.raises(Interrupted):
    train(config, corpus, tmp_path / "past", stop_at(25))
  for run in runs:
    assert train_runs([run], corpus, Display(quiet=True), StopRequest(), Options(until=10)) == []
    assert max(int(path.name) for path in (run.folder / "checkpoints").iterdir()) == 10
  fresh, past = map(results.read_rungs, runs)
  assert fresh == past
  assert list(fresh) == [10]


def test_the_steps_of_one_call_are_limited_by_time(resolved, tmp_path):
  config, corpus = resolved
  found = []
  for timeout in (0.0, 8.0):
    config.train.step_timeout = timeout
    member = open_member(Run(config, absolute(tmp_path)), corpus, StopRequest())
    watch = Watch([member], 0, 30, Display(quiet=True), Clock(1), 1e12)
    strides = [watch.stride()]  # before any step has been timed
    for watch.pace in (0.01, 0.5, 60.0):
      strides.append(watch.stride())
    found.append(strides)
    member.checkpoints.close()
  assert found == [[1, 400, 8, 1], [1, 200, 4, 1]]
  assert lanes.stride_of(config) == lanes.STRIDE
  config.train.batch_size = 1 << 14  # of rows of 132 bytes
  assert lanes.stride_of(config) == 1


@pytest.mark.parametrize(("cost", "expected"), [(0.0, [11, 22, 33]), (0.5, [11, 62])])
def test_metrics_are_flushed_every_ten_seconds_in_at_most_one_percent_of_the_time(
  resolved, tmp_path, monkeypatch, cost, expected
):
  config, corpus = resolved
  config.train.log_every = 1
  now, written = [0.0], []

  def write(run, state, step, *_):
    written.append(step)
    now[0] += cost

  monkeypatch.setattr("bigmodel.train.watch.time", SimpleNamespace(monotonic=lambda: now[0]))
  monkeypatch.setattr("bigmodel.train.watch.write_status", write)
  member = open_member(Run(config, absolute(tmp_path)), corpus, StopRequest())
  watch = Watch([member], 0, 100, Display(quiet=True), Clock(1), 1e12)
  values = {name: np.full((1, 1), x) for name, x in (("loss", 1.0), ("diverged_at", -1))}
  for step in range(expected[-1] + 5):  # of a second each
    now[0] += 1
    watch.read(Dispatched(step, 1, lambda: values, None))
  member.checkpoints.close()
  assert written == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_requests_a_stop_and_old_handlers_are_restored(number):
  before = signal.getsignal(number)
  with interruptible() as stop:
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested()
  assert signal.getsignal(number) == before


def test_evaluations_during_training_are_logged_and_do_not_affect_it(resolved, tmp_path, stop_at):
  """They equal evaluations of the steps' checkpoints, for uninterrupted and interrupted runs and members of packs."""
  config, corpus = resolved
  plain = train(config, corpus, tmp_path / "plain")
  config.eval.every = 4
  whole = train(config, corpus, tmp_path / "whole")
  assert (whole.run_id, whole.result_sha256) == (plain.run_id, plain.result_sha256)
  found = {row["step"]: row for row in metrics.read(tmp_path / "whole") if "loss_eval" in row}
  assert list(found) == [4, 8, 12, 16, 20, 24, 28]
  assert all(row["loss"] > 0 and row["metrics"]["perplexity"] > 1 for row in found.values())
  run, program = Run(config, absolute(tmp_path / "whole")), programs.program(config)
  store = Checkpoints(run.folder / "checkpoints")
  params = store.restore(20, program.shapes).params
  store.close()
  rows = pipeline.eval_rows(config, corpus)
  assert found[20]["loss_eval"] == pytest.approx(evaluate(program, params, config, rows).loss, rel=1e-6)
  for looks in (7, 11):  # where an evaluation is due, and where a checkpoint is, too
    with pytest.raises(Interrupted):
      train(config, corpus, tmp_path / "cut", stop_at(looks))
  assert train(config, corpus, tmp_path / "cut").result_sha256 == whole.result_sha256
  facts = lambda folder: [(r["step"], r["loss"], r.get("loss_eval"), r.get("metrics")) for r in metrics.read(folder)]
  assert facts(tmp_path / "cut") == facts(tmp_path / "whole")
  other = study.with_overrides(config, {"seed": 1, "train.steps": 8})
  pack = [Run(one, absolute(tmp_path / f"pack{i}")) for i, one in enumerate((config, other))]
  train_runs(pack, corpus, Display(quiet=True), StopRequest())
  packed = {row["step"]: row["loss_eval"] for row in metrics.read(pack[0].folder) if "loss_eval" in row}
  assert packed == pytest.approx({step: row["loss_eval"] for step, row in found.items()}, rel=1e-4)  # sums differ
  assert [row["step"] for row in metrics.read(pack[1].folder) if "loss_eval" in row] == [4]  # 8 is its end


@pytest.mark.parametrize("least", [12, 30])
def test_the_checkpoint_with_the_lowest_held_out_loss_is_kept(resolved, tmp_path, stop_at, monkeypatch, least):
  """With made-up losses that are lowest at step 12 or at the end, also if interrupted before, at or after it."""
  config, corpus = resolved
  plain = train(config, corpus, tmp_path / "plain")
  config.eval.every, config.train.keep_best = 4, True
  offer = best.Best.offer
  offered = lambda self, step, state, loss: offer(self, step, state, 1.0 + abs(step - least))
  monkeypatch.setattr(best.Best, "offer", offered)
  for name, stops in (("whole", ()), ("cut", (9, 1, 4))):
    for looks in stops:
      with pytest.raises(Interrupted):
        train(config, corpus, tmp_path / name, stop_at(looks))
    assert train(config, corpus, tmp_path / name).result_sha256 == plain.result_sha256
    folder = tmp_path / name / "best"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(least)]
    assert read_json(folder / "best.json") == {"step": least, "loss_eval": 1.0}
  config.train.init_from = str(folder)
  weights.resolve(config)
  assert config.train.init_sha256


def test_a_resumed_run_finds_the_best_checkpoint_again_after_it_was_replaced(resolved, tmp_path):
  config, _ = resolved
  run, state = Run(config, absolute(tmp_path)), programs.program(config).init(0)
  one = best.Best(run, lambda: False)
  for step, loss in ((4, 3.0), (8, 4.0), (12, 2.0)):
    one.offer(step, state, loss)
  one.close()
  again = best.Best(run, lambda: False)
  again.resume(10)  # the one of step 4 was replaced by that of step 12
  assert not list((tmp_path / "best" / "checkpoints").iterdir())
  for step, loss in ((12, 2.0), (16, 2.0)):
    again.offer(step, state, loss)
  assert [path.name for path in (tmp_path / "best" / "checkpoints").iterdir()] == ["12"]
  again.resume(12)
  again.offer(20, state, 2.5)
  assert [path.name for path in (tmp_path / "best" / "checkpoints").iterdir()] == ["12"]
  again.close()


def test_logging_and_checkpoints_do_not_change_the_run(resolved, tmp_path):
  config, corpus = resolved
  one = train(config, corpus, tmp_path / "one")
  before = run_id(config)
  config.train.log_every, config.train.checkpoint_every = 1, 7
  assert run_id(config) == before
  assert train(config, corpus, tmp_path / "two").result_sha256 == one.result_sha256


def test_seeds_of_initialization_and_data_order_are_independent(resolved, tmp_path):
  config, corpus = resolved
  config.train.steps = 3
  hashes = set()
  for seed, data_seed in ((0, 0), (1, 0), (0, 1)):
    config.seed, config.data.seed = seed, data_seed
    hashes.add(train(config, corpus, tmp_path / f"{seed}{data_seed}").params_sha256)
  assert len(hashes) == 3


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_bit_for_bit(resolved, tmp_path, stop_at):
  config, corpus = resolved
  whole = train(config, corpus, tmp_path / "whole")
  with pytest.raises(Interrupted):
    train(config, corpus, tmp_path / "cut", stop_at(25))
  newest = max((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda p: int(p.name))
  victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  assert train(config, corpus, tmp_path / "cut").result_sha256 == whole.result_sha256


@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("checkpoint_every", [1, 10])
def test_a_diverged_run_is_a_record_and_stops_early(resolved, tmp_path, log_every, checkpoint_every):
  config, corpus = resolved
  config.train.log_every, config.train.checkpoint_every = log_every, checkpoint_every
  config.optim.lr, config.optim.clip, config.optim.warmup = 1e30, 1e30, 0.0
  sealed = train(config, corpus, tmp_path)
  assert sealed.status == "diverged"
  assert sealed.steps < 30
  assert sealed.loss_eval is None
  assert train(config, corpus, tmp_path / "again").result_sha256 == sealed.result_sha256


def test_cutting_metrics_twice_or_partly_loses_nothing(tmp_path, monkeypatch):
  kept = metrics.Metrics(tmp_path)
  for step in range(1, 10):
    kept.add(step, {})
    if step % 3 == 0:
      kept.flush()

  def killed(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(type(kept._segments), "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      kept.cut(7)
  kept.cut(7)
  kept.cut(7)
  assert [row["step"] for row in metrics.read(tmp_path)] == list(range(1, 8))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_pack_with_one_finished_member_finishes_the_other_only(resolved, tmp_path, average):
  config, corpus = resolved
  config.optim.average = average
  other = config.copy_and_resolve_references()
  other.data.seed = 1
  runs = [Run(c, absolute(tmp_path / name)) for c, name in ((config, "a"), (other, "b"))]
  first = train_runs(runs, corpus, Display(quiet=True), StopRequest())
  (tmp_path / "b" / "record.json").unlink()
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.json*") if p.name != "provenance.json"}
  again = train_runs(runs, corpus, Display(quiet=True), StopRequest())
  assert [r.result_sha256 for r in again] == [r.result_sha256 for r in first]
  assert {p: p.stat().st_mtime_ns for p in before} == before
  state = Checkpoints(tmp_path / "a" / "checkpoints").restore(30, programs.program(config).shapes)
  params = optim.evaluated(config, state.params, state.opt_state)
  assert steps.params_sha256(params) == first[0].params_sha256


def test_a_folder_of_another_config_is_refused_with_the_difference(resolved, tmp_path):
  config, corpus = resolved
  config.train.steps = 2
  train(config, corpus, tmp_path)
  config.optim.lr = 0.5
  with pytest.raises(UserError, match=r"another config \(optim.lr: 0.003 -> 0.5\)"):
    train(config, corpus, tmp_path)


SCRIPT = """
from bigmodel.study import default_config
def get_config(arg=None):
  config = default_config()
  config.data.name, config.data.path, config.data.heldout_fraction = "text_files", {path!r}, 0.2
  config.data.context, config.model.width, config.model.layers, config.model.head_size = 32, 16, 1, 8
  config.train.steps, config.train.batch_size, config.train.checkpoint_every, config.eval.tokens = 400, 8, 40, 2048
  config.parallel.data, config.data.repeat = 2, True
  return config
"""


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_a_whole_one(corpus_dir, tmp_path, times, inside):
  (tmp_path / "config.py").write_text(SCRIPT.format(path=str(corpus_dir / "*.jsonl")))
  rng = random.Random(0)

  def start(folder):
    command = [
      sys.executable,
      "-m",
      "bigmodel.cli",
      "train",
      f"--config={tmp_path / 'config.py'}",
      f"--workdir={tmp_path / folder}",
    ]
    return subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)

  code, out, err = inside("train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'whole'}", "--json")
  assert code == 0, err
  whole, kills, process = json.loads(out), 0, None
  provenance = tmp_path / "killed" / "provenance.json"
  while kills < times:
    before = provenance.stat().st_mtime_ns if provenance.exists() else 0
    process = start("killed")
    while process.poll() is None and not (provenance.exists() and provenance.stat().st_mtime_ns != before):
      time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 2.5))
    if process.poll() is not None:
      break
    number = signal.SIGTERM if kills == 2 else signal.SIGKILL
    process.send_signal(number)
    process.communicate()
    assert process.returncode in ((75, 0) if kills == 2 else (-9, 0))
    kills += 1
  if kills == times:
    process = start("killed")
  assert process is not None
  ended = json.loads(process.communicate()[0])
  assert kills >= min(times, 2)
  assert ended["result_sha256"] == whole["result_sha256"]
  assert ended["params_sha256"] == whole["params_sha256"]
