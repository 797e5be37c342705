"""Branches of a trunk equal the same runs trained alone, to the bit, for a part of the compute."""

import dataclasses
import shutil

import pytest

from bigmodel import record, study
from bigmodel.designs import branches
from bigmodel.errors import Interrupted
from bigmodel.study import Branches, Grid, Study
from bigmodel.study import plan as plans
from bigmodel.study.plan import Workforce
from bigmodel.train import handover, metrics
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest
from bigmodel.workers import execute

HORIZONS = (5120, 10240, 15360)  # 20, 40 and 60 steps


def branching(config, seeds=(0,), horizons=HORIZONS):
  config.data.repeat, config.train.steps = True, 0
  design = Branches(Grid({"seed": seeds}), horizons, decay=0.25, warmup=0.2)
  return Study("branches", "How long should one train?", design, laws=())


def test_runs_of_several_horizons_branch_from_the_longest_where_they_decay(config, tmp_path):
  prepared = study.prepare(config, branching(config), tmp_path)
  found = branches.find(prepared.runs)
  runs = sorted(prepared.runs.values(), key=lambda run: run.steps)
  assert [run.steps for run in runs] == [20, 40, 60]
  assert found == {
    runs[0].run_id: branches.Branch(runs[2].run_id, 15),
    runs[1].run_id: branches.Branch(runs[2].run_id, 30),
  }
  changed = runs[0].config.copy_and_resolve_references()
  changed.optim.lr *= 2
  other = dataclasses.replace(runs[0], config=changed)
  assert branches.find({"a": other, "b": runs[2]}) == {}
  # Runs whose rate falls from the start share no steps.
  for run in runs:
    run.config.optim.schedule = "cosine"
  assert branches.find(prepared.runs) == {}


def test_only_branches_from_the_same_step_train_together(config, tmp_path, monkeypatch):
  """So each pack begins at a common step."""
  monkeypatch.setattr("jax.device_count", lambda: 2)
  prepared = study.prepare(config, branching(config, seeds=(0, 1)), tmp_path)
  plan = study.make_plan(prepared)
  left = {row.run_id: row.trunk.step for row in plan.runs}
  assert [[left[run_id] for run_id in group.run_ids] for group in plan.groups] == [[0, 0], [15, 15], [30, 30]]


@pytest.mark.parametrize(("looks", "worker"), [(0, True), (25, False)])
def test_branches_equal_runs_trained_alone(config, tmp_path, stop_at, looks, worker):
  """Also if the trunk stops after the first branch, and if a worker takes groups in another order."""
  the_study = branching(config)
  prepared = study.prepare(config, the_study, tmp_path / "study")
  if looks:
    with pytest.raises(Interrupted):
      study.run_study(prepared, True, stop_at(looks))
    assert not record.collect(tmp_path / "study")
  if worker:
    plans.write(tmp_path / "study", study.make_plan(prepared, workforce=Workforce(2)))
    study.work(prepared, "w", True, StopRequest(), patience=1.0)
  report = study.run_study(prepared, True, StopRequest())
  by_steps = {one["steps"]: one for one in report["runs"]}
  trunk = by_steps[60]["run_id"]
  assert [by_steps[n]["trunk"] for n in (20, 40, 60)] == [
    {"trunk": trunk, "step": 15}, {"trunk": trunk, "step": 30}, {}
  ]  # fmt: skip
  assert report["cost"]["shared"] == pytest.approx((15 + 30) / 120)
  plan = plans.read(tmp_path / "study")
  assert plan.total.flops_6nd_shared / plan.total.flops_6nd == pytest.approx((15 + 30) / 120)
  for run in prepared.runs.values():
    alone = dataclasses.replace(run, folder=tmp_path / run.run_id)
    data = prepared.data(run.config)
    with Display(0, True) as display:
      (one,) = train_runs([alone], data, display, StopRequest())
    branch = record.read(run.folder)
    assert branch.result_sha256 == one.result_sha256
    rows = [[(r["step"], r["loss"]) for r in metrics.read(f)] for f in (run.folder, alone.folder)]
    assert rows[0] == rows[1]


def test_a_branch_is_in_no_pack_with_its_trunk(config, tmp_path):
  """Different decays can share a program and so a pack, but the trunk has to train first."""
  config.train.steps, config.optim.schedule = 20, "wsd"
  the_study = Study("decays", "?", Grid({"optim.decay": tuple(i / 20 for i in range(1, 10))}), laws=())
  prepared = study.prepare(config, the_study, tmp_path)
  found = branches.find(prepared.runs)
  assert len(found) == 8
  for workers in (1, 3):
    groups = study.make_plan(prepared, workforce=Workforce(workers)).groups
    assert all(len({run_id in found for run_id in group.run_ids}) == 1 for group in groups)
    assert groups[0].run_ids[0] not in found


def test_an_added_horizon_does_not_branch_from_an_earlier_trunk(config, tmp_path):
  """The trunk may have ended, without a checkpoint for the new run."""
  known = study.make_plan(study.prepare(config, branching(config, horizons=HORIZONS[::2]), tmp_path))
  plan = study.make_plan(study.prepare(config, branching(config), tmp_path), known)
  left = {run.steps: run.trunk.step for run in plan.runs}
  assert left == {20: 15, 60: 0, 40: 0}
  assert plan.total.flops_6nd_shared / plan.total.flops_6nd == pytest.approx(15 / 120)


def test_an_ended_trunk_saves_no_checkpoint_beside_one_that_trains_again(config, tmp_path, monkeypatch):
  monkeypatch.setattr("jax.device_count", lambda: 2)
  prepared = study.prepare(config, branching(config, seeds=(0, 1)), tmp_path)
  before = study.run_study(prepared, True, StopRequest())["runs"]
  of = {(one["seed"], one["steps"]): one["run_id"] for one in before}
  for lost in ((0, 40), (1, 60)):
    shutil.rmtree(tmp_path / "runs" / of[lost])
  after = study.run_study(prepared, True, StopRequest())["runs"]
  sums = lambda runs: {one["run_id"]: one["result_sha256"] for one in runs}
  assert sums(after) == sums(before)


def test_a_run_without_a_complete_checkpoint_waits_for_its_trunk(config, tmp_path):
  prepared = study.prepare(config, branching(config), tmp_path)
  run = next(iter(prepared.runs.values()))
  assert execute.waits(run)
  (run.folder / "checkpoints" / ".15").mkdir(parents=True)  # an unfinished save
  assert execute.waits(run)
  (run.folder / "checkpoints" / "15").mkdir()
  assert not execute.waits(run)


def test_a_branch_is_saved_again_after_a_kill(config, tmp_path, monkeypatch):
  """Killed before the metrics, the trunk's name or the checkpoint are written, the next attempt writes all of them."""
  prepared = study.prepare(config, branching(config), tmp_path / "study")
  run = sorted(prepared.runs.values(), key=lambda run: run.steps)[1]
  died = []

  def dying(work, path_of):
    def at(*given, **named):
      path = path_of(*given)
      if run.folder in path.parents and path.name in ("metrics.jsonl", "trunk.json", "checkpoints"):
        died.append(path.name)
        raise KeyboardInterrupt
      return work(*given, **named)

    return at

  for place, name, path_of in (
    (handover, "write_jsonl", lambda path, *_: path),
    (handover, "write_json", lambda path, *_: path),
    (handover.Checkpoints, "save", lambda self, *_: self.folder),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, name, dying(getattr(place, name), path_of))
      with pytest.raises(KeyboardInterrupt):
        study.run_study(prepared, True, StopRequest())
    assert execute.waits(run)
  assert died == ["metrics.jsonl", "trunk.json", "checkpoints"]
  study.run_study(prepared, True, StopRequest())
  with Display(0, True) as display:
    alone = dataclasses.replace(run, folder=tmp_path / "alone")
    (one,) = train_runs([alone], prepared.data(run.config), display, StopRequest())
  assert record.read(run.folder).result_sha256 == one.result_sha256
  assert len(metrics.read(run.folder)) == len(metrics.read(alone.folder))
