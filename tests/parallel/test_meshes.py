"""Every preset, dense and with experts, trains as one device does, with state sharded as configured."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding

from bigmodel import optim, parallel
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.train import programs
from bigmodel.train.checkpoint import to_flat

STEPS = 20
BETA1 = 0.9
VARIANTS = {
  "dp": {},
  "fsdp": dict(preset="fsdp", scan=False),  # one loop all the same
  "fsdp_tp": {},
  "fsdp_tp_sp": {},
  "ep": {},
  "pp": {},
  "pp of 4": dict(preset="pp", pipeline=4, remat="full", microbatches=4),
  "fsdp with dots": dict(preset="fsdp", scan=False, remat="dots"),
  "gathered": dict(preset="fsdp_tp_sp", sequence=4, tensor=1, sequence_attention="gather"),
  "blockwise": dict(preset="dp", attention="blockwise"),
  "everything": dict(preset="fsdp_tp_sp", fsdp=1, pipeline=2, remat="full"),
}


@pytest.fixture
def model(resolved):
  """A config with four layers, and its corpus. The meshes divide all its axes except the vocabulary of 257."""
  config, corpus = resolved
  config.model.update(width=32, layers=4, heads=4, kv_heads=2, feed_forward=48)
  config.train.batch_size = config.eval.batch_size = 16
  config.parallel.update(data=0, scan=True)  # a loop compiles faster
  return config, corpus


def with_experts(config):
  config = config.copy_and_resolve_references()
  config.model.update(experts=4, expert_group=8, expert_capacity=1.0)  # tokens do get dropped
  config.data.seed = 1  # with 0, two choices of one of 40,000 routings tie to 7 digits at step 19 and fall either way
  return config


def on(config, **changes):
  config = config.copy_and_resolve_references()
  config.parallel.update(changes)
  return config


def gradients(config, corpus):
  """Losses of all steps, and the gradients of the first and the last (clipped), on the host."""
  parallel.check(config)
  program = programs.program(config)
  rows = pipeline.train_pipeline(config, corpus, STEPS)
  state = program.place([program.init(0)])
  h = program.put_hyperparameters([optim.hyperparameters(config, STEPS)])
  losses, moments = [], []
  for step in range(STEPS):
    state, metrics = program.step(state, program.put_rows([rows.part(step)]), h)
    losses.append(float(metrics["loss"]))
    moments.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.opt_state.own.mu)]))
  last = (moments[-1] - BETA1 * moments[-2]) / (1 - BETA1)
  return program, np.array(losses), moments[0] / (1 - BETA1), last


def distance(one, other):
  return np.linalg.norm(one - other) / np.linalg.norm(one)


@pytest.fixture(scope="module")
def alone():
  return {}  # results of one device, by kind of model


QUICK = {("fsdp", False), ("pp", False), ("fsdp_tp_sp", True), ("ep", True)}  # every axis once
CASES = [
  pytest.param(name, experts, marks=() if (name, experts) in QUICK else pytest.mark.slow)
  for experts in (False, True)
  for name in VARIANTS
  if experts or name != "ep"  # for a dense model that is plain fsdp
]


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_every_mesh_trains_as_one_device(model, alone, name, experts):
  config, corpus = model
  if experts:
    config = with_experts(config)
  if experts not in alone:
    alone[experts] = gradients(on(config, preset="dp", data=1, scan=False), corpus)[1:]
  losses, first, last = alone[experts]
  program, losses_m, first_m, last_m = gradients(on(config, **(VARIANTS[name] or dict(preset=name))), corpus)
  assert program.mesh.size == 8
  assert losses[-1] < losses[0] - 0.3
  # As documented: the order of float32 sums differs, and 20 steps amplify that.
  assert abs(losses_m[0] / losses[0] - 1) < 1e-5
  assert distance(first, first_m) < 1e-5
  assert abs(losses_m[-1] / losses[-1] - 1) < 1e-4
  assert distance(last, last_m) < 1e-4


@pytest.mark.parametrize(
  "name",
  ["ep", "pp", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in ("dp", "ep", "pp"))],
)
def test_evaluation_of_experts_is_the_same_on_every_mesh(model, name):
  """No token is dropped: there are as many rounds as the fullest expert of any device needs."""
  config, corpus = model
  config = with_experts(config)
  rows = pipeline.train_pipeline(config, corpus, STEPS).part(0)

  def losses(config):
    program = programs.program(config)
    params = program.place([program.init(0)]).params
    return program.values(params, rows, 0)["loss"]

  expected = losses(on(config, preset="dp", data=1))
  found = losses(on(config, **(VARIANTS[name] or dict(preset=name))))
  np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(
  ("preset", "devices", "experts", "sizes"),
  [
    ("dp", 8, False, dict(data=8)),
    ("fsdp", 8, False, dict(fsdp=8)),
    ("fsdp_tp", 8, False, dict(fsdp=4, tensor=2)),
    ("fsdp_tp_sp", 8, False, dict(fsdp=2, tensor=2, sequence=2)),
    ("ep", 8, True, dict(fsdp=2, expert=4)),
    ("ep", 8, False, dict(fsdp=8)),
    ("pp", 8, False, dict(fsdp=4, pipeline=2)),
    ("fsdp_tp_sp", 1, False, {}),  # the same config on a laptop
    ("fsdp_tp_sp", 2, False, dict(tensor=2)),
    ("pp", 3, False, dict(fsdp=2)),  # 16 rows do not divide by 3
    ("fsdp", 64, False, dict(fsdp=16)),
  ],
)
def test_presets_use_all_available_devices(model, preset, devices, experts, sizes):
  config, _ = model
  config = on(with_experts(config) if experts else config, preset=preset)
  parallel.check(config, devices)
  found = {axis: size for axis, size in parallel.mesh_sizes(config, devices).items() if size > 1}
  assert found == sizes


def test_meshes_that_cannot_work_are_refused_with_a_reason(model):
  config, _ = model
  for changes, message in (
    (dict(preset="fdsp"), r"parallel.preset: no 'fdsp' \(did you mean 'fsdp'\?\)"),
    (dict(data=-1, fsdp=-1), "only one axis may be -1"),
    (dict(fsdp=16), "16 devices are required, 8 are available"),
    (dict(tensor=4), "parallel.tensor: 4 does not divide model.kv_heads = 2"),
    (dict(pipeline=8), "parallel.pipeline: 8 does not divide model.layers = 4"),
    (dict(tensor=3), "parallel.tensor: 3 does not divide model.heads = 4"),
    (dict(pipeline=2, microbatches=3), "16 rows are not divisible"),
    (dict(rules=("mpl=tensor",)), r"no logical axis 'mpl' \(did you mean 'mlp'\?\)"),
    (dict(rules=("mlp=tenser",)), r"no mesh axis 'tenser' \(did you mean 'tensor'\?\)"),
  ):
    with pytest.raises(UserError, match=message):
      parallel.check(on(config, **changes))
  with pytest.raises(UserError, match=r"parallel.expert: 8 does not divide model.experts = 4"):
    parallel.check(on(with_experts(config), expert=8))
  experts = on(with_experts(config), sequence=2)
  experts.model.expert_group = 0
  with pytest.raises(UserError, match="2 does not divide the 1 groups of a row"):
    parallel.check(experts)


def test_a_parameter_without_a_rule_is_refused_by_its_name():
  mesh = parallel.make_mesh_of(dict(fsdp=8))
  named = lambda *axes: nn.LogicallyPartitioned(jax.ShapeDtypeStruct((16, 16), np.float32), axes)
  with pytest.raises(UserError, match=r"no rule for the axis 'depth' of blocks\.odd"):
    parallel.shardings(mesh, {"blocks": {"odd": named("depth", "embed")}})
  with pytest.raises(UserError, match="bare: its model names no axes"):
    parallel.shardings(mesh, {"bare": jax.ShapeDtypeStruct((16, 16), np.float32)})


def test_rules_of_the_config_take_precedence(model):
  config, _ = model
  config = on(config, preset="fsdp", rules=("mlp=fsdp", "embed="))
  state = programs.program(config).init(0)
  arrays = to_flat(state.params)
  up = arrays["blocks.feed_forward.up"].sharding
  assert isinstance(up, NamedSharding)
  assert tuple(up.spec) == ("pipeline", None, "fsdp")
  assert arrays["embedding"].sharding.is_fully_replicated


@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_fsdp_shards_parameters_and_optimizer_state(model, experts):
  config, _ = model
  config.model.update(width=64, feed_forward=256)
  config = on(with_experts(config) if experts else config, preset="fsdp")
  state = programs.program(config).init(0)
  device = jax.devices()[3]
  for tree in (state.params, state.opt_state):
    whole = sum(x.nbytes for x in jax.tree.leaves(tree))
    assert parallel.bytes_on(device, tree) <= 1.05 / 8 * whole
  specs = lambda tree: jax.tree.map(lambda x: x.sharding.spec, tree)
  assert specs(state.opt_state.own.mu) == specs(state.params) == specs(state.opt_state.own.nu)


@pytest.mark.parametrize(
  ("optimizer", "preset"),
  [
    pytest.param(o, p, marks=() if (o, p) in {("muon", "fsdp_tp_sp"), ("soap", "pp")} else pytest.mark.slow)
    for o in ("muon", "shampoo", "soap", "sophia", "adafactor", "lion")
    for p in ("fsdp", "fsdp_tp", "fsdp_tp_sp", "pp")
  ],
)
def test_matrix_optimizers_train_the_same_on_every_mesh_with_sharded_state(model, optimizer, preset):
  """Orthogonalized steps, roots and eigenbases are those of whole matrices, however these are sharded."""
  config, corpus = model
  config = config.copy_and_resolve_references()
  config.optim.name, config.model.feed_forward = optimizer, 64
  ends = []
  for own in (on(config, preset="dp", data=1), on(config, preset=preset)):
    program, rows = programs.program(own), pipeline.train_pipeline(own, corpus, 20)
    state = program.place([program.init(0)])
    h = program.put_hyperparameters([optim.hyperparameters(own, 20)])
    losses = []
    for step in range(6):
      state, metrics = program.step(state, program.put_rows([rows.batch(step)]), h)
      losses.append(float(metrics["loss"]))
    ends.append(losses)
  # Bases of covariances that a few steps leave nearly singular turn with the last bits.
  np.testing.assert_allclose(ends[0][:2], ends[1][:2], rtol=1e-5)
  np.testing.assert_allclose(ends[0], ends[1], rtol=2e-3 if optimizer == "soap" else 2e-4)
  large = [x for x in jax.tree.leaves(state.opt_state) if x.size >= 4096]  # as large as a matrix of each layer
  assert large
  assert all(x.addressable_shards[0].data.size < x.size for x in large)
