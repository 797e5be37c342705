"""Members of a pack equal runs trained alone, with different horizons and lanes of any shape."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bigmodel import optim, record, study
from bigmodel.data import pipeline
from bigmodel.errors import Interrupted
from bigmodel.files import absolute
from bigmodel.planner import price
from bigmodel.study import Listed, Study
from bigmodel.study import plan as plans
from bigmodel.train import metrics, programs, watch
from bigmodel.train import step as steps
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.run import Run
from bigmodel.train.stop import StopRequest
from bigmodel.workers import execute, packs
from bigmodel.workers.groups import Group


def members_of(config, folder, horizons, **changes):
  runs = []
  for i, count in enumerate(horizons):
    own = config.copy_and_resolve_references()
    own.train.steps, own.seed = count, i
    for name, value in changes.items():
      own.parallel[name] = value
    run = Run(own, absolute(folder))
    runs.append(dataclasses.replace(run, folder=absolute(folder) / run.run_id))
  return runs


def train(runs, corpus, stop=None):
  return train_runs(runs, corpus, Display(quiet=True), stop or StopRequest())


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}], ids=str)
def test_each_member_has_its_horizon_and_equals_the_run_trained_alone(resolved, tmp_path, sizes):
  """On lanes of a CPU, and also sharded over the other axes of a mesh."""
  config, corpus = resolved
  config.model.vocab = 264  # 257 is prime
  runs = members_of(config, tmp_path / "pack", (30, 20), **sizes)
  ended = train(runs, corpus)
  for run, own in zip(runs, ended, strict=True):
    (alone,) = train([dataclasses.replace(run, folder=tmp_path / "alone" / run.run_id)], corpus)
    assert own.steps == alone.steps == run.steps
    assert own.loss_eval == pytest.approx(alone.loss_eval, rel=1e-5)
    assert own.loss_train == pytest.approx(alone.loss_train, rel=1e-5)
    assert own.epochs_seen == alone.epochs_seen
    rows = metrics.read(run.folder)
    assert [row["step"] for row in rows] == list(range(5, run.steps + 1, 5))
    assert record.read(run.folder) == own


def test_a_member_past_its_horizon_is_not_computed(resolved):
  config, corpus = resolved
  config.train.steps = 3
  program, rows = programs.program(config, 2), pipeline.train_pipeline(config, corpus, 5)
  state = program.place([program.init(seed) for seed in range(2)])
  h = program.put_hyperparameters([optim.hyperparameters(config, count) for count in (3, 5)])
  marks, host = [], None
  for step in range(5):
    state, _ = program.step(state, program.put_rows([rows.batch(step)] * 2), h)
    host = program.fetch(state)
    marks.append([steps.params_sha256(program.member(host, i).params) for i in range(2)])
  short, long = zip(*marks, strict=True)
  assert len({*short}) == 3
  assert short[2:] == (short[2],) * 3
  assert len({*long}) == 5
  assert [int(program.member(host, i).step) for i in range(2)] == [3, 5]


@pytest.mark.parametrize("looks", [7, 24])
def test_a_pack_of_several_horizons_resumes_to_the_same_bits(resolved, tmp_path, stop_at, looks, monkeypatch):
  """Before and after the shorter member has ended; with single steps instead of several per call."""
  config, corpus = resolved
  whole = train(members_of(config, tmp_path / "whole", (30, 20)), corpus)
  runs = members_of(config, tmp_path / "halves", (30, 20))
  with monkeypatch.context() as one_by_one:
    one_by_one.setattr(watch, "AT_ONCE_SECONDS", 0.0)
    with pytest.raises(Interrupted):
      train(runs, corpus, stop_at(looks))
  assert (record.read(runs[1].folder) is not None) == (looks == 24)
  again = train(runs, corpus)
  for one, other in zip(whole, again, strict=True):
    assert one.result_sha256 == other.result_sha256
  assert metrics.read(runs[1].folder)[-1]["step"] == 20


def test_steps_of_one_call_are_logged_at_different_times(resolved, tmp_path):
  config, corpus = resolved
  config.train.log_every = 1
  runs = members_of(config, tmp_path, (30, 20))
  calls = []

  class Counts(StopRequest):
    def requested(self):
      calls.append(1)
      return False

  train(runs, corpus, Counts())
  assert len(calls) < 20  # of 30 steps
  for run in runs:
    rows = metrics.read(run.folder)
    assert [row["step"] for row in rows] == list(range(1, run.steps + 1))
    assert max(row["tokens_per_second"] for row in rows) < 1e8


def test_records_of_diverged_members_do_not_depend_on_the_steps_per_call(resolved, tmp_path, monkeypatch):
  config, corpus = resolved
  config.train.log_every = 1
  config.optim.update(lr=1e30, clip=1e30, warmup=0.0)
  results = []
  for seconds in (0.0, watch.AT_ONCE_SECONDS):
    monkeypatch.setattr(watch, "AT_ONCE_SECONDS", seconds)
    runs = members_of(config, tmp_path / str(seconds), (30, 30))
    ended = train(runs, corpus)
    assert [one.status for one in ended] == ["diverged"] * 2
    steps_ = [[row["step"] for row in metrics.read(run.folder)] for run in runs]
    results.append(([one.result_sha256 for one in ended], steps_))
  assert results[0] == results[1]


def test_a_member_with_a_record_is_unchanged_if_the_others_restart_earlier(resolved, tmp_path):
  """As after a crash, the only checkpoint of the longer member is from before the end of the shorter one."""
  config, corpus = resolved
  runs = members_of(config, tmp_path, (30, 20))
  whole = train(runs, corpus)
  (runs[0].folder / "record.json").unlink()
  for step in (20, 30):
    shutil.rmtree(runs[0].folder / "checkpoints" / str(step), ignore_errors=True)
  held = {p: p.stat().st_mtime_ns for p in Path(runs[1].folder, "checkpoints").rglob("*")}
  assert [one.result_sha256 for one in train(runs, corpus)] == [one.result_sha256 for one in whole]
  assert {p: p.stat().st_mtime_ns for p in Path(runs[1].folder, "checkpoints").rglob("*")} == held
  assert metrics.read(runs[0].folder)[-1]["step"] == 30


def test_a_member_that_has_ended_does_not_change_the_others(resolved, tmp_path):
  config, corpus = resolved
  first, _ = train(members_of(config, tmp_path / "one", (30, 25)), corpus)
  again, _ = train(members_of(config, tmp_path / "other", (30, 10)), corpus)
  assert first.result_sha256 == again.result_sha256


def runs_of(config, tmp_path, horizons):
  config.train.update(steps=0, tokens=0)
  config.data.repeat = True
  runs = [{"train.steps": count, "optim.lr": 0.001 * (i + 1)} for i, count in enumerate(horizons)]
  return list(study.prepare(config, Study("s", "?", Listed(runs), laws=()), tmp_path).runs.values())


def grouped(config, tmp_path, horizons, **options):
  runs = runs_of(config, tmp_path, horizons)
  steps_of = {run.run_id: run.steps for run in runs}
  return [[steps_of[i] for i in ids] for ids in packs.group(runs, **options)]


def test_members_side_by_side_have_similar_horizons(config, tmp_path, monkeypatch):
  monkeypatch.setattr("jax.device_count", lambda: 2)
  assert grouped(config, tmp_path, (100, 40, 90, 38, 20)) == [[100, 40, 90, 38], [20]]
  assert grouped(config, tmp_path, (100, 60, 50, 10)) == [[60, 50], [100], [10]]
  assert grouped(config, tmp_path, (30, 30, 30, 30), workers=2) == [[30], [30], [30], [30]]
  monkeypatch.setattr("jax.device_count", lambda: 1)
  assert grouped(config, tmp_path, (30, 30)) == [[30], [30]]


def test_packs_are_as_large_as_memory_allows(config, tmp_path, monkeypatch):
  """Batched members have similar horizons, because members that have ended are still computed."""
  monkeypatch.setattr("jax.device_count", lambda: 2)
  monkeypatch.setattr(packs, "room", lambda _: 2)
  assert grouped(config, tmp_path, (30,) * 7) == [[30] * 4, [30] * 2, [30]]
  monkeypatch.setattr("bigmodel.parallel.mapped", lambda _: False)
  assert grouped(config, tmp_path, (100, 100, 60, 60)) == [[100, 100], [60, 60]]
  monkeypatch.setattr("jax.device_count", lambda: 1)
  assert grouped(config, tmp_path, (30,) * 3) == [[30, 30], [30]]


COSTS = {"adamw": 1.0, "muon": 3.0}


@pytest.fixture
def planned(config, tmp_path, monkeypatch):
  """`planned(horizons, earlier plan)` -> (sizes that were timed, plan): 1 s per step alone, 1 / members^2 in a pack."""
  monkeypatch.setattr("jax.device_count", lambda: 2)
  config.eval.tokens = 3 * 8 * 32  # as long as one step
  config.train.update(steps=0, tokens=0)
  config.data.repeat = True

  def plan(horizons, known=None, names=("adamw",)):
    measured = []
    seconds = lambda run, members: (measured.append(members), (2.0, members**-2 * COSTS[run.config.optim.name]))[1]
    monkeypatch.setattr("bigmodel.planner.price._measure", seconds)
    runs = [
      {"train.steps": steps, "optim.lr": 0.001 * (i + 1), "optim.name": name}
      for name in names
      for i, steps in enumerate(horizons)
    ]
    plan = study.make_plan(study.prepare(config, Study("s", "?", Listed(runs), laws=()), tmp_path), known)
    return sorted(measured), plan

  return plan


def expected(rows):
  return pytest.approx([row.expected_seconds for row in rows])


def test_a_plan_times_runs_as_they_will_train(planned):
  measured, plan = planned((31, 31, 29, 29, 9))
  assert measured == [1, 4]
  assert expected(plan.runs) == [2.0, 2.0, 1.875, 1.875, 10.0]
  assert expected(plan.groups) == [7.75, 10.0]  # timed programs are compiled already


def test_only_the_largest_pack_of_a_shape_is_timed_and_compiled(planned, monkeypatch):
  monkeypatch.setattr(packs, "room", lambda _: 2)
  measured, plan = planned((31,) * 6)
  assert measured == [4]
  assert expected(plan.runs) == [2.0] * 6
  assert expected(plan.groups) == [8.0, 6.0]


def test_an_added_run_that_trains_alone_is_priced_alone(planned):
  _, known = planned((31,) * 4)
  measured, plan = planned((31,) * 5, known)
  assert measured == [1]
  assert expected(plan.runs) == [2.0] * 4 + [32.0]
  assert expected(plan.groups) == [8.0, 32.0]
  assert plan.total.expected_seconds == pytest.approx(40.0)


def test_each_optimizer_is_timed(planned):
  measured, plan = planned((31, 31, 31), names=("adamw", "muon"))
  assert measured == [1, 1, 2, 2]
  assert expected(plan.runs) == [8.0, 8.0, 32.0, 24.0, 24.0, 96.0]
  assert plan.total.expected_seconds == pytest.approx(16 + 32 + 48 + 96)


def test_a_timed_target_is_compiled_already(config, tmp_path):
  (run,) = runs = runs_of(config, tmp_path, (30,))
  calibration = price.Calibration({price._way(run, False): [(1e6, 1.0)]}, 5.0)
  cost = lambda compiled: plans._price_target(runs, calibration, compiled).expected_seconds
  assert cost(set()) - cost({programs.key(run.config)}) == pytest.approx(5.0)


@pytest.mark.parametrize("steps", [3, 1000])
@pytest.mark.parametrize(
  ("members", "seconds"), [(1, 0.06), (2, (0.5 + 8 * 0.01) / (2 * 8)), (5, (0.5 + 3 * 8 * 0.01) / (5 * 8))]
)
def test_a_step_in_a_pack_costs_its_share_of_the_calls(config, tmp_path, monkeypatch, steps, members, seconds):
  """A call costs 0.5 s for a pack; 5 members share two lanes as 3 and 2, and each takes 8 steps of 0.01 s per call."""
  now, turns = [0.0], -(-members // 2)

  def step(state, rows, h):
    if members == 1:
      now[0] += 0.06
    else:
      left = [min(len(rows), float(own.first + own.steps) - state) for own in h]
      lanes = left[:turns], left[turns:]
      now[0] += 0.5 + 0.01 * max(sum(max(0, n) for n in lane) for lane in lanes)
    if not ran:
      now[0] += 5.0
    ran.append(1)
    return state, {}

  ran, stride = [], 8 if members > 1 else 1
  program = SimpleNamespace(
    mesh=SimpleNamespace(size=2), stride=stride, step=step, init=lambda seed: 0, place=lambda states: states[0],
    put_rows=lambda *rows: rows, put_hyperparameters=lambda h: h,
  )  # fmt: skip
  monkeypatch.setattr("bigmodel.train.programs.program", lambda *_: program)
  monkeypatch.setattr("bigmodel.planner.price.time", SimpleNamespace(perf_counter=lambda: now[0]))
  (run,) = runs_of(config, tmp_path, (steps,))
  assert price._measure(run, members) == pytest.approx((5.0, seconds))


def test_a_pack_planned_elsewhere_is_split_to_fit_a_smaller_machine(config, tmp_path, monkeypatch):
  runs = runs_of(config, tmp_path, (30,) * 5)
  monkeypatch.setattr("jax.device_count", lambda: 2)
  for room, sizes in ((9, [5]), (1, [2, 2, 1]), (0, [1] * 5)):
    monkeypatch.setattr(packs, "room", lambda _, room=room: room)
    group = Group(tuple(run.run_id for run in runs), 10.0)
    parts = execute._parts(group, {run.run_id: run for run in runs})
    assert [len(part.run_ids) for part in parts] == sizes
    assert [run_id for part in parts for run_id in part.run_ids] == [*group.run_ids]
    assert sum(part.expected_seconds for part in parts) == pytest.approx(10.0)


def test_offloaded_or_too_large_runs_are_not_packed(config, tmp_path, monkeypatch):
  monkeypatch.setattr("jax.device_count", lambda: 2)
  monkeypatch.setattr(packs, "room", lambda _: 0)
  assert grouped(config, tmp_path, (30, 30)) == [[30], [30]]
  monkeypatch.undo()
  monkeypatch.setattr("jax.device_count", lambda: 2)
  config.parallel.offload = "optimizer"
  assert grouped(config, tmp_path, (30, 30)) == [[30], [30]]


def test_room_is_memory_over_the_bytes_of_a_member(resolved, monkeypatch):
  config, _ = resolved
  rooms = []
  for memory in (1e5, 1e9, 4e9):
    monkeypatch.setattr("bigmodel.hardware.memory", lambda memory=memory: memory)
    rooms.append([packs.room(config)])
    with monkeypatch.context() as patched:
      patched.setattr("bigmodel.parallel.mapped", lambda _: False)
      rooms[-1].append(packs.room(config))
  assert rooms[0] == [0, 0]
  for one, two in zip(rooms[1], rooms[2], strict=True):
    assert two == pytest.approx(4 * one, rel=0.02)
    assert one > 1
