"""Stages: each trains its task, schedules restart, and resumed runs are bit-identical to uninterrupted ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import optim, study, train
from bigmodel.config import flatten
from bigmodel.data import pipeline
from bigmodel.errors import Interrupted, UserError
from bigmodel.models.dbn import divergence
from bigmodel.train import configs, horizon, metrics, parameters, programs, results, stages
from bigmodel.train.checkpoint import Checkpoints, to_flat
from bigmodel.train.display import Display
from bigmodel.train.evaluate import evaluate
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.stop import StopRequest

PRE = "task.name=contrastive_divergence task.layer={} optim.lr=0.02 optim.weight_decay=0.0 train.steps={}"


@pytest.fixture
def dbn(tmp_path):
  """A config of a net on 60 rows of two noisy patterns: RBMs for 6 and 5 steps, then 9 steps of all layers."""
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 2
  inputs = np.clip(
    np.where(labels[:, None], [1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]) + rng.normal(0, 0.1, (60, 6)), 0, 1
  )
  np.savez(tmp_path / "patterns.npz", inputs=inputs.astype(np.float32), targets=labels)
  config = study.default_config("dbn")
  config.model.hidden = (8, 4)
  config.data.update(name="arrays", path=str(tmp_path / "patterns.npz"), normalise="unit")
  config.optim.update(lr=0.01, warmup=0.0)
  config.train.update(
    steps=9,
    batch_size=8,
    checkpoint_every=4,
    log_every=1,
    stages=(PRE.format(0, 6), PRE.format(1, 5) + " optim.name=momentum"),
  )
  config.eval.batch_size = 8
  config.parallel.data = 1
  return config


def run_to_its_end(config, folder, stop_at=None, stops=()):
  run, data = study.single_run(config, folder)
  with Display(0, True) as display:
    for at in stops:
      assert stop_at is not None
      with pytest.raises(Interrupted):
        train_runs([run], data, display, stop_at(at))
    (record,) = train_runs([run], data, display, StopRequest())
  return run, record


def test_horizons_add_up_and_each_stage_has_its_own_settings(dbn):
  found = stages.of(dbn)
  assert [(s.first, s.stop) for s in found] == [(0, 6), (6, 11), (11, 20)]
  assert train.steps_of(dbn) == 20
  assert [s.config.task.name for s in found] == ["contrastive_divergence"] * 2 + ["classification"]
  assert [s.config.optim.lr for s in found] == [0.02, 0.02, 0.01]


def test_schedules_restart_with_each_stage(dbn):
  rates = []
  for stage in stages.of(dbn):
    h = optim.hyperparameters(stage.config, stage.stop - stage.first, stage.first)
    rates += [
      float(h.lr * optim.schedules.factor("cosine", jnp.int32(step), h)) for step in range(stage.first, stage.stop)
    ]
  assert rates[0] == rates[6] == pytest.approx(0.02)
  assert rates[11] == pytest.approx(0.01)
  assert rates[5] < 0.006


@pytest.mark.parametrize("stops", [[2, 3], [5], [6], [10], [11, 4]])
def test_a_run_cut_anywhere_ends_with_the_bits_of_a_whole_one(dbn, tmp_path, stop_at, stops):
  _, whole = run_to_its_end(dbn, tmp_path / "whole")
  _, cut = run_to_its_end(dbn, tmp_path / "cut", stop_at, stops)
  assert cut.result_sha256 == whole.result_sha256
  assert cut.steps == 20


def test_a_stage_changes_only_the_layer_that_it_trains(dbn, tmp_path, stop_at):
  after = {}
  for at in (5, 10):  # the last steps of the first two stages, saved when interrupted
    run, data = study.single_run(dbn, tmp_path / str(at))
    with Display(0, True) as display, pytest.raises(Interrupted):
      train_runs([run], data, display, stop_at(at))
    store = Checkpoints(run.folder / "checkpoints")
    step = store.newest_sound()
    assert step is not None
    after[step] = store.arrays(step, parameters.PREFIX)
    store.close()
  first, second = after[min(after)], after[max(after)]
  assert min(after) <= 6 < max(after) <= 11
  for name in first:
    changed = not np.array_equal(first[name], second[name])
    assert changed == ("layer_1" in name or (min(after) < 6 and "layer_0" in name)), name


@pytest.mark.parametrize(("axes", "members"), [({"fsdp": 2}, 2), ({}, jax.device_count() + 1)])
def test_members_of_a_pack_change_stages_like_single_runs(dbn, tmp_path, axes, members):
  """Members are sharded over axes, or are too few to fill the lanes."""
  dbn.parallel.update(data=1, **axes)
  runs, data = [], pipeline.prepare(dbn)
  for i in range(members):
    config = dbn.copy_and_resolve_references()
    config.optim.lr = 0.01 * (i + 1)
    runs.append(study.single_run(config, tmp_path / str(i))[0])
  with Display(0, True) as display:
    packed = train_runs(runs, data, display, StopRequest())
  for i in (0, members - 1):
    _, alone = run_to_its_end(runs[i].config, tmp_path / f"alone-{i}")
    assert packed[i].loss_eval == pytest.approx(alone.loss_eval, rel=1e-4)


def test_the_gradient_of_contrastive_divergence_is_hinton_s_rule():
  key = jax.random.key(0)
  v, W = jax.random.uniform(key, (5, 6)), jax.random.normal(key, (6, 4))
  c, b = jnp.linspace(-1, 1, 4), jnp.linspace(0, 1, 6)
  sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))
  h = np.asarray(jax.random.bernoulli(key, jax.nn.sigmoid(v @ W + c)), float)
  seen = sigmoid(h @ W.T + b)
  up = lambda x: sigmoid(x @ W + c)
  expected = (
    -(np.asarray(v).T @ up(v) - seen.T @ up(seen)) / 5,
    -(up(v) - up(seen)).mean(axis=0),
    -(np.asarray(v) - seen).mean(axis=0),
  )
  found = jax.grad(lambda W, c, b: jnp.mean(divergence(v, W, c, b, key)[:, 0]), argnums=(0, 1, 2))(W, c, b)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  reconstruction = -(np.asarray(v) * np.log(seen) + (1 - np.asarray(v)) * np.log(1 - seen)).sum(axis=1)
  np.testing.assert_allclose(divergence(v, W, c, b, key)[:, 1], reconstruction, rtol=1e-4)


def test_bad_stages_are_refused(dbn, tmp_path):
  for text, message in (
    ("optim.lr=0.1", "sets neither train.tokens nor train.steps"),
    ("train.steps=3 model.hidden=(3,)", "model.hidden is not one of"),
    ("train.steps=3 optim.rl=0.1", "config.optim.rl: no such field"),
    (PRE.format(2, 3), "config.task.layer: 2 is none of the 2 layers"),
    (PRE.format(0, 3).replace("weight_decay=0.0", "weight_decay=0.1"), "config.optim.weight_decay"),
  ):
    dbn.train.stages = (text,)
    with pytest.raises(UserError, match=message):
      study.single_run(dbn, tmp_path / "bad")


@pytest.mark.parametrize("name", optim.NAMES)
def test_a_stage_resets_inherited_fields_that_its_optimizer_does_not_read(config, name):
  """Every optimizer that reads additional fields, after a stage with every other optimizer."""
  defaults = optim.defaults()
  for last_name, optimizer in optim.optimizers.BUILT_IN.items():
    config.optim.update(
      defaults | {"name": last_name, "schedule": "cosine", "final": 0.2, "decays": ("embedding=0.5",)}
    )
    changed = {"update_scale": "spectral", "momentum": 0.8, "beta1": 0.8, "beta2": 0.8, "epsilon": 1e-6, "gamma": 0.1}
    config.optim.update({field: changed[field] for field in optimizer.reads})
    if optimizer.sets_rate:
      config.optim.decays = ()
    config.train.stages = (f"optim.name={name} optim.schedule=constant optim.weight_decay=0.0 train.steps=2",)
    study.check(config)
    stage, last = (found.config.optim for found in stages.of(config))
    both = set(optimizer.reads) & set(optim.optimizers.BUILT_IN[name].reads)
    for field in optimizer.reads:
      assert last[field] == changed[field]
      assert stage[field] == (changed[field] if field in both else defaults[field]), field
    assert (stage.final, stage.decays) == (defaults["final"], ())
  config.optim.update(defaults)
  config.train.stages = ("optim.name=sgd optim.beta1=0.8 train.steps=2",)
  with pytest.raises(UserError, match=r"beta1: 0\.8 has no effect on sgd"):
    study.check(config)


def ramped(config):
  config.train.update(ramp=("2@640", "4@1920"), batch_size=8, steps=0, tokens=6016, checkpoint_every=7, log_every=1)
  return config


def test_a_ramp_increases_the_batch_size(config):
  assert train.phases(ramped(config)) == [
    horizon.Phase(2, 0, 10, 0), horizon.Phase(4, 10, 20, 20), horizon.Phase(8, 20, 36, 60)
  ]  # fmt: skip
  assert train.steps_of(config) == 36
  assert [train.tokens_at(config, step) for step in (0, 10, 20, 36)] == [0, 640, 1920, 6016]
  for ramp, message in (
    (("2",), "is not ROWS@TOKENS"),
    (("2@640", "4@320"), "ends before it begins"),
    (("2@640000",), "longer than the run"),
  ):
    config.train.ramp = ramp
    with pytest.raises(UserError, match=message):
      train.check(config)


def test_a_ramp_reads_each_row_once_in_order_and_keeps_the_optimizer_state(config, tmp_path, stop_at):
  """Results are the same if the run is stopped within or at the ends of phases."""
  run, data = study.single_run(ramped(config), tmp_path / "whole")
  rows = []
  for stage in stages.of(run.config):
    stage_rows = pipeline.train_pipeline(stage.config, data, stage.stop - stage.first, stage.before)
    rows += [row for step in range(stage.stop - stage.first) for row in stage_rows.batch(step)]
  plain = pipeline.train_pipeline(stages.of(run.config)[-1].config, data, 23)
  np.testing.assert_array_equal(rows[:184], [row for step in range(23) for row in plain.batch(step)])
  assert len(rows) == 188
  with Display(0, True) as display:
    (whole,) = train_runs([run], data, display, StopRequest())
    for looks in (4, 5, 9, 12):
      cut = dataclasses.replace(run, folder=tmp_path / "cut")
      with pytest.raises(Interrupted):
        train_runs([cut], data, display, stop_at(looks))
    (again,) = train_runs([cut], data, display, StopRequest())
  assert whole.result_sha256 == again.result_sha256
  assert (whole.steps, whole.tokens, whole.epochs_seen) == (36, 6016, pytest.approx(188 / plain.rows))
  history = metrics.read(run.folder)
  assert [row["tokens"] for row in history[8:12]] == [576, 640, 768, 896]
  # One schedule over all phases: up, and down once.
  rates = [row["lr"] for row in history]
  peak = int(np.argmax(rates))
  assert (np.diff(rates[: peak + 1]) >= 0).all()
  assert (np.diff(rates[peak:]) <= 0).all()
  state = Checkpoints(run.folder / "checkpoints").restore(36, programs.program(run.config).shapes)
  assert int(state.opt_state.own.count) == 36


KINDS = {
  "plain": dict(name="adamw", average=0.0),
  "average": dict(name="adamw", average=0.9),
  "schedule_free": dict(name="schedule_free", average=0.0),
}
PAIRS = [(first, last) for first in KINDS for last in KINDS if first != last]


def two_stages(config, first, last, **more):
  """A copy with a first stage of 4 steps and a last one of 3, with optimizers of these kinds."""
  changed_config = study.with_overrides(config, {f"optim.{name}": value for name, value in KINDS[last].items()})
  changed_config.optim.update(lr=0.05, warmup=0.0)
  changed_config.train.steps = 3
  settings = " ".join(f"optim.{name}={value}" for name, value in {**KINDS[first], **more}.items())
  changed_config.train.stages = (f"{settings} train.steps=4",)
  return changed_config


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_a_run_in_its_first_stage_is_evaluated_with_the_optimizer_of_that_stage(config, tmp_path, first, last):
  """Both at rungs within the stage and at its end, and from the checkpoints there."""
  changed_config = two_stages(config, first, last)
  run, data = study.single_run(changed_config, tmp_path / "run")
  in_force = stages.of(run.config)[0].config
  program = programs.program(in_force)
  for step in (3, 4):
    with Display(0, True) as display:
      assert train_runs([run], data, display, StopRequest(), Options(until=step)) == []
    store = Checkpoints(run.folder / "checkpoints")
    state = store.restore(step, program.shapes)
    expected = optim.evaluated(in_force, state.params, state.opt_state)
    found = parameters.evaluated(configs.read_config(run.folder), store, step)
    store.close()
    for name, x in to_flat(expected).items():
      np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6, err_msg=name)  # compiled or not: rounding
    rung = results.read_rungs(run)[step]
    rows = pipeline.eval_rows(run.config, data)
    assert rung.loss_eval == pytest.approx(evaluate(program, expected, run.config, rows).loss, rel=1e-5)
    assert rung.loss_train is not None


@pytest.mark.parametrize("last", KINDS)
def test_other_members_finish_if_one_diverges_in_its_first_stage(config, tmp_path, last):
  configs = [two_stages(config, "plain", last, name="sgd", lr=lr, clip=1e30, weight_decay=0.0) for lr in (3e38, 0.01)]
  runs, data = (
    [study.single_run(two_stage, tmp_path / str(i))[0] for i, two_stage in enumerate(configs)],
    pipeline.prepare(configs[0]),
  )
  with Display(0, True) as display:
    ended = train_runs(runs, data, display, StopRequest())
    (alone,) = train_runs([dataclasses.replace(runs[1], folder=tmp_path / "alone")], data, display, StopRequest())
  assert [one.status for one in ended] == ["diverged", "finished"]
  assert ended[1].loss_eval == pytest.approx(alone.loss_eval, rel=1e-5)  # sums have another order


def test_a_users_optimizer_of_a_stage_has_its_fields_and_is_identified_by_content(config, tmp_path):
  body = (
    "import optax\ndef mine(beta1, trust: float = 1.0): return optax.chain(optax.trace(beta1), optax.scale(trust))\n"
  )
  names = []
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.py").write_text(body)
    names.append(str(tmp_path / folder / "mine.py"))

  def run_of(path, trust="0.5"):
    changed = config.copy_and_resolve_references()
    changed.train.update(steps=4, stages=(f"optim.name={path}:mine optim.trust={trust} train.steps=3",))
    return study.single_run(changed, tmp_path / "run")

  run, data = run_of(names[0])
  assert run.run_id == run_of(names[1])[0].run_id
  assert run.run_id != run_of(names[0], "0.25")[0].run_id
  assert stages.of(run.config)[0].config.optim.trust == 0.5
  assert "trust" not in stages.of(run.config)[-1].config.optim
  with Display(0, True) as display:
    (record,) = train_runs([run], data, display, StopRequest())
  assert record.finished
  (tmp_path / "a" / "mine.py").write_text(body.replace("scale(trust)", "scale(2 * trust)"))
  assert run_of(names[0])[0].run_id != run.run_id


def test_a_users_text_in_a_mixture_is_identified_by_content(config, tmp_path):
  flats = []
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "texts.py").write_text("def texts():\n  return [f'text {i}' for i in range(100)]\n")
    changed = config.copy_and_resolve_references()
    changed.data.mixture = (f"1 name={tmp_path / folder / 'texts.py'}:texts",)
    configs.complete_names(changed)
    flats.append(configs.identity(flatten(changed)))
  assert flats[0] == flats[1]
