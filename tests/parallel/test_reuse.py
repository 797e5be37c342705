"""Trained models are evaluated and generate on their run's mesh, from their parameters alone."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bigmodel import config as configs
from bigmodel import optim, parallel
from bigmodel.data import pipeline
from bigmodel.files import write_json
from bigmodel.parallel import reuse
from bigmodel.tasks import generation
from bigmodel.train import programs, trained
from bigmodel.train.checkpoint import Checkpoints, arrays
from bigmodel.train.evaluate import evaluate

DEVICE = 3  # any except the first, which holds everything else


@pytest.fixture
def saved(resolved, tmp_path, monkeypatch):
  """`saved(name, **fields)` makes a run's folder with these fields of `config.parallel` and a trained state."""
  base, corpus = resolved
  base.model.update(vocab=264, width=64, layers=2, heads=4, kv_heads=2, feed_forward=96)
  base.parallel.scan = True  # compiles faster
  base.train.batch_size = base.eval.batch_size = 16
  monkeypatch.setattr(arrays, "SMALL", 4096)  # bytes: arrays that are written by themselves

  def save(name, experts=False, optimizer="adamw", **changes):
    config = base.copy_and_resolve_references()
    if experts:
      config.model.update(experts=4, expert_group=8)
    config.optim.name = optimizer.split("+")[0]
    config.optim.average = 0.5 if "+average" in optimizer else 0.0
    alone = config.copy_and_resolve_references()
    alone.parallel.update(preset="dp", data=1)
    config.parallel.update({"data": 0, **changes})
    folder = tmp_path / name
    if not (tmp_path / "state").exists():
      rng = np.random.default_rng(0)
      moved = lambda x: x + 1 if x.dtype == np.int32 else x + 0.1 * rng.standard_normal(x.shape, np.float32)
      state = jax.tree.map(lambda x: moved(np.asarray(x)).astype(x.dtype), programs.program(alone).init(0))
      store = Checkpoints(tmp_path / "state")
      store.save(2, state)
      store.close()
    (folder).mkdir()
    (folder / "checkpoints").symlink_to(tmp_path / "state")
    write_json(folder / "config.json", configs.flatten(config))
    return folder, config, corpus

  return save


def bytes_here(device):
  """Bytes of all live arrays on one device; arrays that are views of one buffer count once."""
  shards = [s.data for x in jax.live_arrays() for s in x.addressable_shards if s.device == device]
  return sum({x.unsafe_buffer_pointer(): x.nbytes for x in shards}.values())


QUICK = {"fsdp_tp_sp"}  # the most axes
PRESETS = [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in parallel.PRESETS]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_evaluates_and_generates_like_one_device_without_moving_parameters(saved, preset):
  experts = preset == "ep"
  folder, config, corpus = saved("run", experts, preset=preset)
  single, _, _ = saved("single", experts, preset="dp", data=1)
  # Whatever else is on the device stays there.
  device, before = jax.devices()[DEVICE], bytes_here(jax.devices()[DEVICE])
  model = trained.load(str(folder))
  here, program, params, step = model.config, model.program, model.params, model.step
  assert step == 2
  shapes = programs.program(config).shapes.params
  assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, shapes)
  local = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(shapes))
  assert bytes_here(device) - before == local  # no state of the optimizer, no whole array
  whole = sum(x.size * 4 for x in jax.tree.leaves(shapes))
  assert local == whole if preset == "dp" else local < 0.6 * whole

  rows = pipeline.eval_rows(here, corpus)
  model = trained.load(str(single))
  alone, program1, params1 = model.config, model.program, model.params
  for one, other in zip(jax.tree.leaves(params1), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(one, other)
  found, expected = evaluate(program, params, here, rows), evaluate(program1, params1, alone, rows)
  assert found.loss == pytest.approx(expected.loss, rel=1e-5)  # float32 sums in another order, as in training

  said = []
  for path in (folder, single):
    model = trained.load(str(path), generating=True)
    config, program, params = model.config, model.program, model.params
    if path == folder:
      largest = max(np.prod(x.sharding.shard_shape(x.shape)) / x.size for x in jax.tree.leaves(params) if x.ndim > 2)
      assert largest == 1 if preset == "dp" else largest <= 0.5
    from bigmodel import models

    prompt = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    how = jax.random.key(0), np.float32(0), np.float32(1), 0
    said.append(program.generating(generation.sample)(models.build(config, np.float32), params, prompt, 8, *how))
  np.testing.assert_array_equal(said[0][0], said[1][0])
  np.testing.assert_allclose(said[0][1], said[1][1], rtol=1e-4)


DERIVED = ("schedule_free", "adamw+average")  # whose evaluated parameters are not those that it steps


@pytest.mark.parametrize(
  "optimizer", [*DERIVED, *(pytest.param(name, marks=pytest.mark.slow) for name in optim.NAMES if name not in DERIVED)]
)
def test_only_the_optimizer_state_that_evaluation_needs_is_read(saved, optimizer, monkeypatch):
  folder, config, _ = saved("run", optimizer=optimizer, preset="fsdp")
  read = []
  restore = ocp.Checkpointer.restore

  def spy(self, *args, **kwargs):
    found = restore(self, *args, **kwargs)
    read.extend(found)
    return found

  monkeypatch.setattr(ocp.Checkpointer, "restore", spy)
  model = trained.load(str(folder))
  here, params, step = model.config, model.params, model.step
  monkeypatch.undo()
  separately = {name for name in read if not name.startswith("joined.")}
  needed = ("opt_state.own.z.",) if optimizer == "schedule_free" else ("opt_state.average.",) * ("+" in optimizer)
  assert separately
  assert all(name.startswith(("params.", *needed)) for name in separately)
  store = Checkpoints(folder / "checkpoints")
  state = store.restore(step, programs.program(config).shapes)
  expected = optim.evaluated(here, state.params, state.opt_state)
  for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("family_experts", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("preset", parallel.PRESETS)
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_the_mesh_of_a_large_run_shrinks_to_the_available_devices(
  resolved, monkeypatch, preset, devices, family_experts
):
  config, _ = resolved
  config.model.update(vocab=264, width=96, layers=4, heads=4, kv_heads=2, feed_forward=96)
  if family_experts:
    config.model.update(experts=4, expert_group=8)
  config.train.batch_size = config.eval.batch_size = 48
  config.parallel.update(data=0, preset=preset, remat="full", offload="optimizer")
  wishes = parallel.PRESETS[preset]
  config.parallel.update({axis: size for axis, size in wishes.items() if size > 0}, **{next(iter(wishes)): 16})
  here = jax.devices()[:devices]
  monkeypatch.setattr(jax, "devices", lambda *_: here)
  monkeypatch.setattr(jax, "device_count", lambda *_: devices)
  for shrunk in (reuse.for_evaluation(config), reuse.for_generation(config)):
    mesh = parallel.make_mesh(shrunk)
    assert mesh.size <= devices
    assert shrunk.parallel.remat == shrunk.parallel.offload == "none"
  evaluated = parallel.make_mesh(reuse.for_evaluation(config))
  assert evaluated.size == devices or devices == 3
  if preset != "dp":
    assert parallel.make_mesh(reuse.for_generation(config)).size >= min(devices, 2)


@pytest.mark.parametrize("preset", parallel.PRESETS)
@pytest.mark.parametrize("data", [-1, 0, 1, 2])
def test_generation_shards_the_weights_of_pipeline_stages(resolved, preset, data):
  config, _ = resolved
  config.model.update(vocab=264, width=64, layers=4, heads=4, kv_heads=2, feed_forward=96)
  config.train.batch_size = config.eval.batch_size = 64
  config.parallel.update(preset=preset, data=data, pipeline=2)
  parallel.check(config)
  found = parallel.mesh_sizes(reuse.for_generation(config), 8)
  assert found["pipeline"] == 1
  assert found["data"] == max(data, 1)
  assert found["fsdp"] * found["tensor"] * found["sequence"] == 8 // max(data, 1)


def test_a_run_with_an_unsharded_vocabulary_is_evaluated_on_its_mesh(resolved, monkeypatch):
  config, _ = resolved
  config.model.update(vocab=264, width=64, layers=4, heads=4, kv_heads=4, feed_forward=96)
  config.train.batch_size = config.eval.batch_size = 16
  config.parallel.update(preset="dp", data=1, tensor=4, pipeline=4)
  kinds = (jax.sharding.AxisType.Auto,) * len(parallel.AXES)
  shape = lambda own: {"member": 1, **parallel.mesh_sizes(own, 16)}
  abstract = lambda own: jax.sharding.AbstractMesh(tuple(shape(own).values()), parallel.AXES, axis_types=kinds)
  monkeypatch.setattr(reuse, "make_mesh", abstract)  # 16 devices are not here
  monkeypatch.setattr(jax, "device_count", lambda *_: 16)
  assert parallel.vocabulary_axes(config, shape(config)) == ("tensor",)
  assert shape(reuse.for_evaluation(config)) == shape(config)
