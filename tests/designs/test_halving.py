"""Halving and Hyperband: which runs they keep by held-out data, evaluations at rungs, and warnings."""

import json
import logging
import math

import msgspec
import pytest

from bigmodel import record, study
from bigmodel.designs import halving
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.optim.schedules import SCHEDULES
from bigmodel.study import Grid, Halving, Hyperband, Study, rungs
from bigmodel.tasks.metrics import LARGER
from bigmodel.train import pack as pack_module
from bigmodel.train import results
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.results import Rung, read_rungs, write_rung
from bigmodel.train.run import Run, write_provenance
from bigmodel.train.stop import StopRequest

DESIGNS = (Halving, Hyperband)


@pytest.mark.parametrize(
  "axes",
  [{"model.dropout": (0.0, 0.5, 0.8)}, {"task.label_smoothing": (0.0, 0.05, 0.1, 0.3)}],
  ids=["dropout", "smooth"],
)
def test_the_best_regularisation_is_kept(axes, tmp_path):
  """On 100 memorised digits, no regularisation has the worst or second-worst held-out loss (0.750).

  It has the best training loss at every step, so halving by training loss keeps it. The best held-out losses are those
  of dropout 0.8 (0.672) and label smoothing 0.05 (0.612).
  """
  pytest.importorskip("sklearn")
  config = study.default_config("mlp")
  config.data.update(name="sklearn/digits", examples=100, repeat=True)
  config.model.hidden = (128,)
  config.optim.update(lr=0.01, weight_decay=0.0)
  config.train.update(batch_size=50, steps=120, log_every=120, checkpoint_every=1000)
  every = study.prepare(config, Study("all", "?", Grid(axes), laws=()), tmp_path / "all")
  ended = {one["run_id"]: one for one in study.run_study(every, True, StopRequest())["runs"]}
  best = min(ended, key=lambda run_id: ended[run_id]["loss_eval"])
  plain = min(ended, key=lambda run_id: ended[run_id]["loss_train"])
  assert ended[plain]["loss_eval"] > ended[best]["loss_eval"] + 0.05
  halved = study.prepare(config, Study("halved", "?", Halving(Grid(axes), 1 / 2, 2), laws=()), tmp_path / "halved")
  report = study.run_study(halved, True, StopRequest())
  kept = {one["run_id"] for one in report["runs"] if one["status"] == "finished"}
  assert report["sweep"]["cells"][0]["run_ids"] == [best]
  assert plain not in kept
  rungs = {run_id: read_rungs(run)[60] for run_id, run in halved.runs.items()}
  train = {run_id: rung.loss_train or math.inf for run_id, rung in rungs.items()}
  heldout = {run_id: rung.loss_eval or math.inf for run_id, rung in rungs.items()}
  assert min(train, key=lambda run_id: train[run_id]) == plain
  assert max(heldout[i] for i in kept) < min(heldout[i] for i in rungs.keys() - kept)
  assert "accuracy" in rungs[best].metrics


def fake_runs(config, tmp_path, count):
  prepared = study.prepare(
    config, Study("s", "?", Grid({"optim.lr": tuple(0.01 * (i + 1) for i in range(count))}), laws=()), tmp_path
  )
  for one in prepared.runs.values():
    write_provenance(one)
  return list(prepared.runs.values())


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("measure", ["loss", "mse", *LARGER])
def test_the_measure_of_the_study_decides_in_both_directions(design, measure, config, tmp_path):
  """The order by the measure is the reverse of that by the loss. A diverged run never continues."""
  config.train.steps = 18
  members = fake_runs(config, tmp_path, 9)
  halver = design(Grid({}), first=1 / 3)
  went_on = []

  def train(alive, until):
    if not until:
      return went_on.extend(alive)
    for i, one in enumerate(members):
      value = i / 10 if measure == "loss" or measure.startswith(LARGER) else 1 - i / 10
      rung = Rung(0.5, i / 10 if measure == "loss" else 1 - i / 10, {measure: value})
      if one.run_id in alive:
        write_rung(one, until, Rung() if i == 4 else rung)

  rungs.run(halver, members, measure, train)
  for bracket, part in halver.brackets(members):
    if not bracket.rungs(18):
      continue
    order = sorted((i for i, one in enumerate(members) if one in part and i != 4), reverse=measure != "loss")
    kept = {i for i, one in enumerate(members) if one in part and one.run_id in went_on}
    assert kept == set(order[: math.ceil(len(part) / 3)])
    assert (measure != "loss") or 4 not in kept


def test_a_measure_that_the_task_does_not_have_is_refused_at_the_rung(config, tmp_path):
  config.train.steps = 18
  members = fake_runs(config, tmp_path, 3)

  def train(alive, until):
    for one in members:
      write_rung(one, until, Rung(0.5, 1.0, {"accuracy": 0.5}))

  with pytest.raises(UserError, match=r"no 'acuracy' \(did you mean 'accuracy'"):
    rungs.run(Halving(Grid({}), first=1 / 3), members, "acuracy", train)


def test_runs_are_evaluated_once_at_a_rung_in_packs_and_alone(resolved, tmp_path, monkeypatch):
  """In a pack, and in a pack that was stopped after some of its members had been evaluated."""
  config, corpus = resolved
  evaluated = []
  real = pack_module.measure

  def counting(program, params, *rest):
    evaluated.append(len(params))
    return real(program, params, *rest)

  monkeypatch.setattr(pack_module, "measure", counting)
  configs = [study.with_overrides(config, {"seed": seed}) for seed in range(3)]
  pack = [Run(one, tmp_path / f"pack{i}") for i, one in enumerate(configs)]
  go_on = lambda runs: train_runs(runs, corpus, Display(quiet=True), StopRequest(), Options(until=10))
  assert go_on(pack) == []
  assert sum(evaluated) == 3
  together = [read_rungs(one) for one in pack]
  assert all(list(rungs) == [10] and rungs[10].loss_eval > 0 for rungs in together)
  evaluated.clear()
  go_on(pack)
  assert sum(evaluated) == 0
  (pack[1].folder / "rungs.json").unlink()
  go_on(pack)
  assert sum(evaluated) == 1
  assert [read_rungs(one) for one in pack] == together
  single = Run(configs[2], tmp_path / "single")
  go_on([single])
  (alone,), (packed,) = read_rungs(single).values(), together[2].values()
  assert alone.loss_eval == pytest.approx(packed.loss_eval, rel=1e-5)  # sums have another order
  # The rung of an earlier version is a training loss: the run is evaluated, and does not train again.
  write_json(single.folder / "rungs.json", {"10": 3.0})
  assert read_rungs(single) == {}
  go_on([single])
  assert read_rungs(single)[10] == alone


def test_a_stopped_run_resumes_if_it_is_among_the_best_of_a_grown_design(config, tmp_path):
  config.train.update(steps=3, log_every=3)

  def train(*rates):
    the_study = Study("s", "?", Halving(Grid({"optim.lr": rates}), first=1 / 3), laws=())
    prepared = study.prepare(config, the_study, tmp_path)
    return {one["learning_rate"]: one for one in study.run_study(prepared, True, StopRequest())["runs"]}

  before = train(1e-2, 1e-3, 1e-4)
  assert {rate: one["status"] for rate, one in before.items()} == {1e-2: "finished", 1e-3: "stopped", 1e-4: "stopped"}
  assert all(one["loss_eval"] > 0 and one["metrics"]["perplexity"] > 1 for one in before.values())  # at the rung, too
  after = train(1e-2, 1e-3, 1e-4, 1e-5)
  assert {rate for rate, one in after.items() if one["status"] == "finished"} == {1e-2, 1e-3}
  assert after[1e-3]["steps"] == 3
  assert after[1e-4] == before[1e-4]
  aside = tmp_path / "runs" / after[1e-3]["run_id"] / "attempts" / "000.json"
  assert before[1e-3].items() >= read_json(aside).items()


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("design", DESIGNS)
def test_a_grown_design_finishes_the_same_runs_as_a_new_one(design, count, config, tmp_path):
  """Also if runs of Hyperband move to another bracket. The loss of a run is its learning rate."""
  config.train.steps = 18

  def train(alive, until):
    for one in alive.values():
      if record.read(one.folder) is None and until:
        write_rung(one, until, Rung(0.5, one.config.optim.lr))
      elif record.read(one.folder) is None:
        ended = results.unevaluated(one, one.steps)
        results.end(one, msgspec.structs.replace(ended, status="finished", steps=one.steps))

  def finished(folder, *counts):
    members = []
    for many in counts:
      members = fake_runs(config, tmp_path / folder, many)
      rungs.run(design(Grid({}), first=1 / 9), members, "loss", train)
    return {one.run_id for one in members if record.read(one.folder).status == "finished"}

  whole = finished("whole", count * 3)
  assert len(whole) < count * 3
  assert finished("grown", count, count + 1, count * 3) >= whole


def test_a_run_that_passed_a_step_without_a_rung_is_compared_by_its_next_rung(config, tmp_path):
  config.train.steps = 18
  (one,) = fake_runs(config, tmp_path, 1)
  write_rung(one, 2, Rung(0.5, 3.0))
  write_rung(one, 6, Rung(0.5, 2.0))
  assert [rungs.value_at(one, step, "loss") for step in (2, 4, 6, 8)] == [3.0, 2.0, 2.0, None]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("design", DESIGNS)
def test_a_warning_names_rungs_before_the_decay(design, schedule, config, tmp_path):
  config.train.steps = 18
  config.optim.schedule = schedule
  members = fake_runs(config, tmp_path, 4)
  warning = halving.undecayed(design(Grid({}), first=1 / 9), members)
  assert design.__name__ in warning
  assert f"optim.schedule {schedule}" in warning
  averaged = []
  for one in members:
    own = one.config.copy_and_resolve_references()
    own.optim.average = 0.9
    averaged.append(Run(own, one.folder))
  assert halving.undecayed(design(Grid({}), first=1 / 9), averaged) == ""


def test_a_study_logs_the_warning_when_it_begins(config, tmp_path, caplog):
  config.train.update(steps=6, log_every=6)
  the_study = Study("s", "?", Halving(Grid({"optim.lr": (0.01, 0.02)}), 1 / 2, 2), laws=())
  with caplog.at_level(logging.WARNING, "bigmodel"):
    study.run_study(study.prepare(config, the_study, tmp_path), True, StopRequest())
  (said,) = [one.message for one in caplog.records if "of its peak" in one.message]
  assert said.startswith("Halving compares runs at step 3 of 6, where the learning rate (optim.schedule cosine)")


def test_the_loss_of_a_part_of_a_mixture_is_measured_at_a_rung(config, tmp_path):
  for part in range(2):
    lines = [json.dumps({"text": f"{part}-{i}: " + "the model reads " * 40}) for i in range(20)]
    (tmp_path / f"part{part}.jsonl").write_text("\n".join(lines) + "\n")
  config.data.update(name="text_files", path=str(tmp_path / "part0.jsonl"), heldout_fraction=0.3, repeat=True)
  config.data.mixture = (f"1 path={tmp_path / 'part1.jsonl'}",)
  config.train.update(steps=6, log_every=6)
  the_study = Study("s", "?", Halving(Grid({"optim.lr": (0.01, 0.02)}), 1 / 2, 2), laws=(), measure="loss_part1")
  prepared = study.prepare(config, the_study, tmp_path / "study")
  report = study.run_study(prepared, True, StopRequest())
  assert sorted(one["status"] for one in report["runs"]) == ["finished", "stopped"]
  for run in prepared.runs.values():
    rung = read_rungs(run)[3]
    low, high = sorted(rung.metrics[f"loss_part{part}"] for part in range(2))
    assert rung.loss_eval is not None
    assert low < rung.loss_eval < high  # the loss of all is between those of the parts, which differ
  best = min(prepared.runs, key=lambda run_id: read_rungs(prepared.runs[run_id])[3].metrics["loss_part1"])
  assert [one["run_id"] for one in report["runs"] if one["status"] == "finished"] == [best]
