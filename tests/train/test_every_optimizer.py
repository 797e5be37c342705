"""Every optimizer starts from given weights, and does not change frozen parameters."""

import jax
import numpy as np
import pytest
from handmade import labels_of  # its folder is on the path of pytest

from bigmodel import optim, study
from bigmodel.data import corpus as corpora
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.planner import analytic
from bigmodel.train import configs, parameters, programs, stages, weights
from bigmodel.train.checkpoint import Checkpoints, to_flat
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.run import Run
from bigmodel.train.stop import StopRequest
from bigmodel.workers import packs

STEPS = 20
FROZEN = ("attention", "^embedding$")
CASES = [(name, 0.0) for name in optim.NAMES] + [("adamw", 0.9)]
# What float32 rounds away where an average is computed from two other arrays.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def source(corpus_dir, tmp_path_factory):
  """`(config, data, record, folder)` of a run that has learned something."""
  config = study.default_config()
  config.data.update(name="text_files", path=str(corpus_dir / "*.jsonl"), heldout_fraction=0.2, context=32)
  config.model.update(width=16, layers=1, head_size=8)
  config.optim.lr = 0.02
  config.train.update(steps=10, batch_size=8)
  config.eval.tokens = 2048
  config.parallel.data = 1
  data = corpora.prepare(config)
  config, folder = study.resolve(config, data), tmp_path_factory.mktemp("source")
  with Display(quiet=True) as display:
    (record,) = train_runs([Run(config, folder)], data, display, StopRequest())
  return config, data, record, folder


def from_source(config, folder, **optim_fields):
  """The config of a run whose initial weights are those of the run in `folder`."""
  changed_config = config.copy_and_resolve_references()
  changed_config.train.init_from, changed_config.train.steps = str(folder), STEPS
  changed_config.optim.update(optim_fields)
  optim.check(changed_config)
  weights.resolve(changed_config)
  weights.check(changed_config)
  return changed_config


def take_steps(config, data, program, state, count):
  state = program.place([state])
  rows = pipeline.train_pipeline(config, data, STEPS)
  h = program.put_hyperparameters([optim.hyperparameters(config, STEPS)])
  for step in range(count):
    state, _ = program.step(state, program.put_rows([rows.batch(step)]), h)
  return state


def assert_equal(one, other, **tolerance):
  one, other = to_flat(one), to_flat(other)
  assert one.keys() == other.keys()
  for name, value in one.items():
    if tolerance:
      np.testing.assert_allclose(value, other[name], err_msg=name, **tolerance)
    else:
      np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize(("name", "average"), CASES)
def test_training_starts_from_given_weights_and_frozen_ones_stay(source, tmp_path, name, average):
  config, data, _, folder = source
  changed_config = from_source(config, folder, name=name, average=average, frozen=FROZEN, lr=1e-9, weight_decay=0.1)
  program = programs.program(changed_config)
  start = weights.start(changed_config, program.init(changed_config.seed), program.optimizer_state)
  store = Checkpoints(folder / "checkpoints")
  loaded = parameters.evaluated(configs.read_config(folder), store, store.steps()[-1])
  store.close()
  assert_equal(start.params, loaded)
  assert_equal(start.opt_state, optim.initial_state(optim.How.of(changed_config), start.params))
  held = to_flat(start.opt_state)
  assert not [path for path in held if "attention" in path or "embedding" in path]
  sizes = analytic.state_bytes(changed_config, dict.fromkeys(program.mesh.shape, 1))
  assert sizes["optimizer"] == sum(x.nbytes for x in held.values())

  # One step at (almost) no rate leaves the evaluated model as it was loaded.
  state = take_steps(changed_config, data, program, start, 1)
  assert_equal(optim.evaluated(changed_config, state.params, state.opt_state), loaded, **ROUNDING)

  # Steps that learn leave the frozen parameters as they were, wherever the model is looked at.
  changed_config.optim.lr = {"prodigy": 1.0}.get(name, 0.01)
  start = weights.start(changed_config, program.init(changed_config.seed), program.optimizer_state)
  state = take_steps(changed_config, data, program, start, STEPS)
  store = Checkpoints(tmp_path / "learned")
  store.save(STEPS, jax.device_get(state))
  store.close()
  evaluated = to_flat(optim.evaluated(changed_config, state.params, state.opt_state))
  exported = parameters.evaluated(changed_config, store, STEPS)
  moved = set()
  for path, value in loaded.items():
    for found in (to_flat(state.params), evaluated, exported):
      if any(part in path for part in ("attention", "embedding")):
        np.testing.assert_array_equal(found[path], value, err_msg=path)
      elif not np.array_equal(found[path], value):
        moved.add(path)
  assert {"blocks.feed_forward.up", "blocks.feed_forward.down"} <= moved


@pytest.mark.parametrize("name", optim.NAMES)
def test_optimizers_train_other_parameters_if_all_hidden_matrices_are_frozen(name):
  """Optimizers with a special update for hidden matrices then have none to apply it to."""
  config = study.default_config()
  config.optim.update(name=name, frozen=("blocks",), lr=1.0 if name == "prodigy" else 0.01)
  params = {"blocks": {"w": np.ones((2, 6, 8), np.float32)}, "embedding": np.ones((10, 6), np.float32)}
  how, h = optim.How.of(config, labels_of(params)), optim.hyperparameters(config, STEPS)
  state = optim.initial_state(how, params)

  def loss(params):
    return jax.numpy.sum(params["embedding"] ** 2 + params["blocks"]["w"].sum())

  @jax.jit
  def step(params, state, i):
    return optim.update(how, jax.grad(loss)(params), state, params, i, h, loss)[:2]

  after = params
  for i in range(3):
    after, state = step(after, state, np.int32(i))
  np.testing.assert_array_equal(after["blocks"]["w"], params["blocks"]["w"])
  assert not np.array_equal(after["embedding"], params["embedding"])


def test_freezing_every_parameter_is_refused(resolved):
  config, _ = resolved
  config.optim.frozen = (".",)
  with pytest.raises(UserError, match=r"config.optim.frozen: \('.',\) matches every parameter"):
    weights.check(config)


def test_more_members_fit_on_a_host_if_parameters_are_frozen(resolved):
  config, _ = resolved
  room = packs.room(config)
  config.optim.frozen = ("embedding",)
  assert packs.room(config) > 1.5 * room  # more than half of this model is its table


@pytest.mark.parametrize("members", [1, 3])
def test_runs_and_packs_start_from_given_weights(source, tmp_path, members):
  """With an optimizer that trains and evaluates different parameters."""
  config, data, record, folder = source
  changed_config = from_source(config, folder, name="schedule_free", lr=1e-9)
  changed_config.train.steps = 1
  runs = []
  for seed in range(members):
    changed_config = changed_config.copy_and_resolve_references()
    changed_config.seed = seed
    runs.append(Run(changed_config, tmp_path / str(seed)))
  with Display(quiet=True) as display:
    ended = train_runs(runs, data, display, StopRequest())
  for one in ended:
    assert one.loss_eval == pytest.approx(record.loss_eval, rel=1e-5)


@pytest.mark.parametrize(
  ("first", "members", "sizes"),
  [("name=schedule_free", 1, {}), ("average=0.9", 2, {}), ("name=schedule_free", 2, {"fsdp": 2})],
  ids=str,
)
def test_a_stage_starts_from_the_evaluated_parameters_of_the_previous_one(resolved, first, members, sizes):
  config, data = resolved
  config.parallel.update(**sizes)
  config.model.vocab = 264  # divides by the mesh
  config.optim.update(name="schedule_free", lr=0.05)
  config.train.stages = (f"optim.name=adamw optim.{first} train.steps=4",)
  one, two = stages.of(config)
  program = programs.program(one.config, members)
  hs = [optim.hyperparameters(one.config, 4)._replace(beta1=np.float32(0.9 - 0.1 * i)) for i in range(members)]
  h, rows = program.put_hyperparameters(hs), pipeline.train_pipeline(one.config, data, 4)
  state = program.place([program.init(seed) for seed in range(members)])
  for step in range(4):
    state, _ = program.step(state, program.put_rows([rows.batch(step)] * members), h)
  before = program.fetch(state)
  state = programs.program(two.config, members).next_stage(state, h, one.config, two.config)
  after = program.fetch(state)
  for i in range(members):
    ended, begun = program.member(before, i), program.member(after, i)
    changed_config = one.config.copy_and_resolve_references()
    changed_config.optim.beta1 = float(hs[i].beta1)
    judged = optim.evaluated(changed_config, ended.params, ended.opt_state)
    assert_equal(begun.params, judged, **ROUNDING)
    assert_equal(begun.opt_state.own.z, begun.params)
    assert not np.allclose(judged["embedding"], ended.params["embedding"], rtol=1e-5, atol=1e-6)
