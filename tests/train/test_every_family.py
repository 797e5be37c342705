"""Every family learns its task, equally on one device and on four, and resumed runs equal uninterrupted ones."""

import jax
import numpy as np
import pytest

from bigmodel import models, optim, study, tasks
from bigmodel.data import pipeline
from bigmodel.errors import Interrupted, UserError
from bigmodel.train import programs
from bigmodel.train.display import Display
from bigmodel.train.evaluate import evaluate
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest

SMALL = {
  "linear": {},
  "mlp": dict(hidden=(16, 8), dropout=0.1),
  "dbn": dict(hidden=(16,)),
  "alexnet": dict(form="one_weird_trick", hidden=16, dropout=0.2),
  "resnet": dict(width=8, stages=(1, 1), groups=4),
  "vit": dict(patch=21, width=16, layers=1, head_size=8, dropout=0.1),
  "tabular": dict(width=16, layers=1),
  "bert": dict(width=16, layers=1, head_size=8, dropout=0.1),
  "transformer": dict(width=16, layers=1, head_size=8),
  "decoder": dict(width=16, layers=1, head_size=8, dropout=0.1),
}
OFTEN_TESTED = ("decoder", "linear", "alexnet", "vit", "bert", "tabular")  # or like another one
IMAGES = ("alexnet", "resnet", "vit")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Files of 64 images and of 64 rows of a table, whose means depend on their class."""
  folder, rng = tmp_path_factory.mktemp("examples"), np.random.default_rng(0)
  labels = np.arange(64) % 4
  for name, shape in (("images", (63, 63, 1)), ("table", (6,))):
    signal = labels.reshape(-1, *[1] * len(shape)) - 1.5
    np.savez(folder / f"{name}.npz", inputs=rng.standard_normal((64, *shape)) + signal, targets=labels)
  return folder


def config_of(family, files, text, task=""):
  config = study.default_config(family, task)
  config.model.update(**SMALL[family])
  if config.data.kind == "examples":
    config.data.update(name="arrays", path=str(files / ("images.npz" if family in IMAGES else "table.npz")))
  else:
    config.data = text.data
  if family == "dbn":
    config.data.normalise = "unit"
  # At 0.001 an AlexNet's losses depend on the last bits: initial parameters that differ by 1e-6 change them by 1.7%.
  config.optim.lr = {"linear": 0.1, "alexnet": 0.0001, "dbn": 0.2}.get(family, 0.01)
  config.train.update(steps=24, batch_size=8, checkpoint_every=8, log_every=8)
  config.eval.update(tokens=1024, batch_size=8)
  return config


def train(config, steps_, mesh=None, measure=False):
  """Trains some steps; returns their losses, and with `measure` the metrics of an evaluation after them."""
  config = study.with_overrides(config, {f"parallel.{name}": value for name, value in (mesh or {"data": 1}).items()})
  data = pipeline.prepare(config)
  config = study.resolve(config, data)
  study.check(config)
  program, rows = programs.program(config), pipeline.train_pipeline(config, data, steps_)
  state, losses = program.place([program.init(0)]), []
  h = program.put_hyperparameters([optim.hyperparameters(config, steps_)])
  for step in range(steps_):
    state, metrics = program.step(state, program.put_rows([rows.part(step)]), h)
    losses.append(float(metrics["loss"]))
  if not measure:
    return losses, {}
  found = evaluate(program, state.params, config, pipeline.eval_rows(config, data))
  return losses, found.metrics | {"loss": found.loss, "bits_per_byte": found.bits_per_byte}


@pytest.mark.parametrize(
  "family", [pytest.param(f, marks=[pytest.mark.slow] if f in OFTEN_TESTED else []) for f in SMALL]
)
def test_a_family_learns_and_four_devices_agree_with_one(family, files, config):
  family_config = config_of(family, files, config)
  losses, measured = train(family_config, 24, measure=True)
  assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2]), losses
  spread, _ = train(family_config, 24, {"preset": "fsdp", "fsdp": 2, "data": 2})
  np.testing.assert_allclose(spread[0], losses[0], rtol=1e-5)
  np.testing.assert_allclose(spread, losses, rtol=1e-3)  # sums in another order, over 24 steps
  if family_config.task.name == "classification" and family != "dbn":  # sigmoids learn slowly without pre-training
    assert measured["accuracy"] > 0.5
  if family_config.task.name in ("masked_lm", "seq2seq"):
    assert 0 < measured["accuracy"] < 1
    assert measured["bits_per_byte"] == pytest.approx(measured["loss"] / np.log(2), rel=0.02)  # but for separators


@pytest.mark.parametrize("family", ["linear", "tabular"])
def test_a_regression_explains_most_of_the_variance(family, files, config):
  _, measured = train(config_of(family, files, config, "regression"), 60, measure=True)
  assert measured["r2"] > 0.6
  assert measured["mae"] < measured["loss"] ** 0.5


@pytest.mark.parametrize("family", ["bert"])
def test_an_interrupted_run_repeats_its_random_numbers(family, files, config, tmp_path, stop_at):
  """Masks and dropout are functions of the seed and the step."""
  config = config_of(family, files, config)
  config.parallel.data = 1
  sealed = []
  for name, stops in (("whole", []), ("cut", [5, 14])):
    run, data = study.single_run(config, tmp_path / name)
    with Display(0, True) as display:
      for at in stops:
        with pytest.raises(Interrupted):
          train_runs([run], data, display, stop_at(at))
      sealed += train_runs([run], data, display, StopRequest())
  assert sealed[0].result_sha256 == sealed[1].result_sha256
  assert sealed[0].metrics.keys() == {"accuracy", "perplexity"}


def test_microbatches_have_independent_dropout_masks(files, config):
  """The loss of a step is the mean over microbatches with different keys; row b is in microbatch b % 4."""
  family_config = config_of("bert", files, config)
  family_config.model.dropout, family_config.train.accumulate, family_config.parallel.data = 0.0, 4, 1
  data = pipeline.prepare(family_config)
  family_config = study.resolve(family_config, data)
  program, rows = programs.program(family_config), pipeline.train_pipeline(family_config, data, 1).batch(0)
  state, task, model = program.place([program.init(0)]), tasks.build(family_config), models.build(family_config)
  h = program.put_hyperparameters([optim.hyperparameters(family_config, 1)])
  params = jax.device_get(state.params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(family_config.seed), 0), 4)
  apply = lambda *inputs: model.apply({"params": params}, *inputs)
  expected = [
    float(task.objective(apply, rows[i::4], jax.device_get(h.task), jax.random.split(key)[0])[1]["loss"])
    for i, key in enumerate(keys)
  ]
  _, metrics = program.step(state, program.put_rows([rows]), h)
  assert float(metrics["loss"]) == pytest.approx(np.mean(expected), rel=1e-5)
  assert np.ptp(expected) > 1e-3


def test_packed_members_equal_single_runs(files, config):
  """Two learning rates and seeds of a model with dropout, in one program."""
  family_config = config_of("mlp", files, config)
  family_config.parallel.data = 1
  data = pipeline.prepare(family_config)
  changes = [{"optim.lr": 0.01, "seed": 0}, {"optim.lr": 0.003, "seed": 1}]
  configs = [study.resolve(study.with_overrides(family_config, change), data) for change in changes]
  alone = []
  for one in configs:
    program, rows = programs.program(one), pipeline.train_pipeline(one, data, 5)
    state = program.place([program.init(one.seed)])
    for step in range(5):
      h = program.put_hyperparameters([optim.hyperparameters(one, 5)])
      state, _ = program.step(state, program.put_rows([rows.part(step)]), h)
    alone.append(state.params)
  program, rows = programs.program(configs[0], 2), pipeline.train_pipeline(family_config, data, 5)
  state = program.place([program.init(one.seed) for one in configs])
  h = program.put_hyperparameters([optim.hyperparameters(one, 5) for one in configs])
  for step in range(5):
    state, _ = program.step(state, program.put_rows([rows.part(step)] * 2), h)
  host = program.fetch(state)
  for index, params in enumerate(alone):
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # another program
    jax.tree.map(close, program.member(host, index).params, jax.device_get(params))


def test_tasks_that_differ_in_traced_numbers_share_a_program(files, config):
  family_config = config_of("mlp", files, config)
  data = pipeline.prepare(family_config)
  program = lambda changes: programs.program(study.resolve(study.with_overrides(family_config, changes), data))
  assert program({"task.label_smoothing": 0.1}) is program({})
  assert program({"task.balanced": True}) is not program({})


@pytest.mark.parametrize("family", ["bert", "mlp"])
def test_a_study_of_sizes_and_fractions_can_be_prepared(family, files, config, tmp_path):
  family_config = config_of(family, files, config)
  family_config.train.steps = 0
  text = family_config.data.kind == "text"
  axis, amounts = ("data.tokens", (2000, 4001, 8000)) if text else ("data.examples", (10, 33))
  sizes = [{"model.width": 16}, {"model.width": 24}] if text else [{"model.hidden": (n,)} for n in (2, 4, 8)]
  for epochs in (1.0, 3.0):
    design = study.Fractions(sizes, amounts, epochs, axis)
    prepared = study.prepare(family_config, study.Study("fractions", "Which?", design, laws=()), tmp_path / str(epochs))
    assert len(prepared.runs) == 6
    seen = {
      run.config.train.tokens / run.config[axis.split(".")[0]][axis.split(".")[1]] for run in prepared.runs.values()
    }
    assert seen == {epochs}
  more = study.Study("fractions", "Which?", study.Fractions(sizes, (10**7,), 2.0, axis), laws=())
  with pytest.raises(UserError, match="beyond the corpus" if text else "more than the 5. training examples"):
    study.prepare(family_config, more, tmp_path / "more")


def test_fields_that_depend_on_the_data_are_checked_before_compiling(files, config, tmp_path):
  for family, changes, message in (
    ("vit", {"model.patch": 5}, "config.model.patch: 5 does not divide images of 63 x 63"),
    ("alexnet", {"model.form": "grouped"}, "63 x 63 are too small"),
    ("mlp", {"task.class_weights": (1.0, 2.0)}, "2 weights for 4 classes"),
    ("mlp", {"parallel.remat": "full"}, "no stack of blocks"),
    ("vit", {"parallel.attention": "splash"}, "config.parallel.attention: 'splash' is not for this vit"),
    ("bert", {"model.vocab": 257}, "config.model.vocab: 257 is less than the 258 that the data need"),
  ):
    family_config = study.with_overrides(config_of(family, files, config), changes)
    with pytest.raises(UserError, match=message):
      study.single_run(family_config, tmp_path / "refused")


@pytest.mark.parametrize("family", ["vit", "mlp", "bert", "transformer", "resnet"])
def test_every_family_can_be_planned_for_chips(family, files, config):
  from bigmodel.parallel import topology
  from bigmodel.planner.plan import plan_run

  family_config = config_of(family, files, config)
  if family_config.data.kind == "examples":
    family_config.model.update(inputs=(63, 63, 1) if family in IMAGES else (6,), outputs=4)
  family_config.parallel.preset = "fsdp"
  plan = plan_run(
    study.resolve_for_plan(family_config, 8), topology.parse("v5e:2x4", devices=False), {}, compiles=False
  )
  assert plan.analytic.peak_bytes > 0
  assert {cost.kind for cost in plan.analytic.collectives} == {"all-gather", "reduce-scatter"}
