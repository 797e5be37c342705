"""Every preset plans every published configuration, and trains the default one as one device does."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from bigmodel import models, optim, parallel, study
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.train import programs

spec = importlib.util.spec_from_file_location("published", Path(__file__).parents[2] / "configs" / "published.py")
assert spec is not None
assert spec.loader is not None
published = importlib.util.module_from_spec(spec)
spec.loader.exec_module(published)

QUICK = {"default", "mixtral_8x7b", "gpt1", "gpt2_xl", "gpt3_175b", "turing_nlg_17b", "bert_base", "transformer_base",
         "resnet18", "alexnet"}  # fmt: skip
NAMES = ("default", *published.NAMES)


def config_of(name):
  config = study.default_config() if name == "default" else published.get_config(name)
  if name == "default":
    config.train.steps = 10
  if config.model.family == "bert":
    config.model.head = "masked_lm"  # for training, as configs/published.py explains
  return config


def _abstract(sizes):
  """An abstract mesh of these sizes, without devices."""
  kinds = (AxisType.Auto,) * len(parallel.AXES)
  return AbstractMesh(tuple(sizes.get(axis, 1) for axis in parallel.AXES), parallel.AXES, axis_types=kinds)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_every_preset_plans_every_published_configuration(name):
  config = config_of(name)
  for preset in parallel.PRESETS:
    for devices in (8, 64):
      config.parallel.preset = preset
      resolved = study.resolve_for_plan(config, devices)
      sizes, boxed = parallel.mesh_sizes(resolved, devices), models.abstract_parameters(resolved)
      placed = parallel.shardings(_abstract(sizes), boxed, parallel.rules(resolved, sizes))
      assert devices // 2 <= np.prod(list(sizes.values())) <= devices or resolved.train.batch_size < devices
      if "embedding" in placed and sizes["tensor"] * sizes["pipeline"] > 1:  # a vocabulary is split where it can be
        assert placed["embedding"].spec[0] is not None


@pytest.mark.parametrize("width", [30, 33, 36])
def test_presets_shrink_axes_to_divisors_of_a_width(width):
  """The axes that the config sets, and over which weights are also sharded, are taken into account."""
  config = config_of("default")
  config.model.update(width=width, heads=3, kv_heads=3, head_size=10, feed_forward=64, experts=8, expert_group=8)
  config.data.context, config.train.batch_size, config.eval.batch_size = 48, 192, 192
  config = study.resolve_for_plan(config, 1)
  boxed = models.abstract_parameters(config)
  for preset in parallel.PRESETS:
    for asked in ({}, {"sequence": 3}, {"fsdp": 3}):
      for devices in (8, 64):
        changed_config = config.copy_and_resolve_references()
        changed_config.parallel.update(preset=preset, **asked)
        parallel.check(changed_config, devices)
        sizes = parallel.mesh_sizes(changed_config, devices)
        parallel.shardings(_abstract(sizes), boxed, parallel.rules(changed_config, sizes))


def test_a_vocabulary_stays_whole_on_axes_that_do_not_divide_it():
  config = study.resolve_without_data(config_of("default"))  # 264 rows
  config.model.update(heads=16, kv_heads=16, layers=16)
  axes = lambda **sizes: parallel.vocabulary_axes(config, {"tensor": 1, "pipeline": 1, **sizes})
  assert axes(tensor=8) == ("tensor", "pipeline")
  assert axes(tensor=2, pipeline=16) == ("tensor",)
  assert axes(tensor=16) == ()


def test_a_preset_that_cannot_be_filled_has_a_note():
  config = study.resolve_without_data(config_of("default"))
  config.parallel.preset = "ep"
  (note,) = parallel.notes(config, parallel.mesh_sizes(config, 8), 8)
  assert "ep prefers expert=4, but expert=1 is the largest size that divides" in note
  config.parallel.preset = "fsdp_tp"
  assert parallel.notes(config, parallel.mesh_sizes(config, 8), 8) == []
  (note,) = parallel.notes(config, parallel.mesh_sizes(config, 24), 24)
  assert note.startswith("8 of 24 devices are idle: the batch of 16")


def test_axes_that_a_user_sets_are_not_shrunk():
  config = study.resolve_without_data(config_of("default"))
  config.model.dropout, config.parallel.pipeline = 0.1, 2
  with pytest.raises(UserError, match="2 would draw other dropout masks"):
    parallel.check(config, 8)


@pytest.fixture(scope="module")
def alone():
  return {}


@pytest.mark.parametrize(
  "preset", [pytest.param(p, marks=() if p in ("fsdp_tp", "pp") else pytest.mark.slow) for p in parallel.PRESETS]
)
def test_the_default_config_trains_on_every_preset_as_on_one_device(preset, corpus_dir, alone):
  config = study.default_config()
  config.data.update(name="text_files", path=str(corpus_dir / "*.jsonl"), heldout_fraction=0.2, context=32)
  config.train.steps, config.parallel.scan = 3, True  # a loop compiles faster
  corpus = pipeline.prepare(config)
  config = study.resolve(config, corpus)

  def losses(**mesh):
    changed_config = config.copy_and_resolve_references()
    changed_config.parallel.update(mesh)
    parallel.check(changed_config)
    program, rows = programs.program(changed_config), pipeline.train_pipeline(changed_config, corpus, 3)
    state, found = program.place([program.init(0)]), []
    h = program.put_hyperparameters([optim.hyperparameters(changed_config, 3)])
    for step in range(3):
      state, metrics = program.step(state, program.put_rows([rows.part(step)]), h)
      found.append(float(metrics["loss"]))
    return found, jax.device_get(nn.meta.unbox(state.params)["embedding"])

  if not alone:
    alone["losses"], _ = losses(data=1)
  found, table = losses(preset=preset)
  np.testing.assert_allclose(found, alone["losses"], rtol=1e-5)  # float32 sums in another order
  assert table.shape == (264, 64)
  assert not table[257:].any()
  assert table[:257].any(axis=1).all()
