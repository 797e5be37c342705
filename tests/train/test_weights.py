"""Initial weights from other runs: used exactly, frozen as configured, and refused by name if they do not fit."""

import json

import jax
import numpy as np
import pytest

from bigmodel import models, optim, study
from bigmodel.cli.main import main
from bigmodel.errors import UserError
from bigmodel.models.imported import huggingface
from bigmodel.train import configs, interchange, parameters, programs, weights
from bigmodel.train.checkpoint import Checkpoints, to_flat
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest


def trained(config, folder, **changes):
  """Trains a run; returns its last parameters by dotted name."""
  config = study.with_overrides(config, changes)
  run, data = study.single_run(config, folder)
  with Display(0, True) as display:
    train_runs([run], data, display, StopRequest())
  store = Checkpoints(run.folder / "checkpoints")
  step = store.newest_sound()
  assert step is not None
  params = store.arrays(step, parameters.PREFIX)
  store.close()
  return run, {name.removeprefix(parameters.PREFIX): x for name, x in params.items()}


def test_a_run_starts_from_weights_of_another_run_and_frozen_ones_stay(config, tmp_path):
  _, first = trained(config, tmp_path / "first", **{"train.steps": 10})
  tuned, second = trained(
    config, tmp_path / "second",
    **{"train.steps": 10, "train.init_from": str(tmp_path / "first"), "optim.frozen": ("attention", "^embedding$")},
  )  # fmt: skip
  for name, value in second.items():
    frozen = "attention" in name or name == "embedding"
    assert np.array_equal(value, first[name]) == frozen, name
  assert tuned.config.train.init_sha256
  # The run id depends on the initial weights, but not on the path of their folder.
  moved = study.with_overrides(config, {"train.steps": 10, "train.init_from": str(tmp_path / "moved")})
  (tmp_path / "first").rename(tmp_path / "moved")
  again, _ = study.single_run(study.with_overrides(moved, {"optim.frozen": tuned.config.optim.frozen}), tmp_path / "x")
  assert again.run_id == tuned.run_id
  scratch, _ = study.single_run(study.with_overrides(config, {"train.steps": 10}), tmp_path / "y")
  assert scratch.run_id != study.single_run(moved, tmp_path / "z")[0].run_id


def test_weights_that_do_not_fit_are_refused_before_compiling(config, tmp_path):
  trained(config, tmp_path / "first", **{"train.steps": 2})
  config.train.init_from = str(tmp_path / "first")
  for changes, message in (
    ({"model.width": 24}, r"'blocks.attention.key' has the shape \(1, 16, 16\), not"),
    ({"model.tie_embeddings": False}, "has no 'output'; name it in train.init_fresh"),
    ({"optim.frozen": ("attentoin",)}, "config.optim.frozen: no parameter matches 'attentoin'"),
    ({"train.init_fresh": ("^head",)}, r"config.train.init_fresh: no parameter matches '\^head'"),
    ({"train.init_from": str(tmp_path)}, "holds no run"),
    ({"train.init_sha256": "0" * 64}, "has no weights 000000000000"),
    ({"train.init_from": "", "train.init_fresh": ("^output",)}, "config.train.init_fresh: has no effect without"),
    ({"optim.frozen": ("*bias",)}, r"'\*bias' is not a regular expression"),
  ):
    with pytest.raises(UserError, match=message):
      study.single_run(study.with_overrides(config, changes), tmp_path / "other")
  fresh = {"model.tie_embeddings": False, "train.init_fresh": ("^output$",), "train.steps": 2}
  trained(config, tmp_path / "fresh", **fresh)


@pytest.mark.parametrize("optimizer", ["name=adamw", "average=0.9", "name=schedule_free"])
def test_tables_of_an_earlier_version_without_padding_are_padded(config, tmp_path, optimizer):
  """This works for another run and for evaluation, on a mesh that only divides padded tables; resuming is refused."""
  name, _, value = optimizer.partition("=")
  config.optim[name] = value if name == "name" else float(value)
  run, _ = trained(config, tmp_path / "first", **{"train.steps": 2})
  store, program = Checkpoints(run.folder / "checkpoints"), programs.program(run.config)
  state = store.restore(2, program.shapes)
  expected = to_flat(optim.evaluated(run.config, state.params, state.opt_state))
  store.save(2, jax.tree.map(lambda x: np.asarray(x)[:257] if x.shape[:1] == (264,) else np.asarray(x), state))
  store.wait()
  assert (264, 16) not in store.shapes(2).values()
  own, data = study.single_run(
    study.with_overrides(config, {"train.init_from": str(run.folder), "parallel.tensor": 2}), tmp_path / "second"
  )
  split = programs.program(own.config)
  begun = weights.start(own.config, split.init(1), split.optimizer_state).params
  judged = parameters.read_evaluated(run.config, store, 2, split.shapes.params)
  for found in (begun, judged):
    like = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), found, split.shapes.params)
    assert all(jax.tree.leaves(like))
    for name, x in to_flat(found).items():
      np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)  # compiled or not: rounding
    assert not np.asarray(found["embedding"])[257:].any()
  store.close()
  (run.folder / "record.json").unlink()
  with Display(0, True) as display, pytest.raises(UserError, match=r"step 2 was written .* resumed \('embedding'"):
    train_runs([run], data, display, StopRequest())


SHAPES = {
  "gpt2": ("decoder", dict(vocab=31, width=16, layers=2, head_size=8, norm="layer", bias=True, positions="learned",
                           activation="gelu")),
  "llama": ("decoder", dict(vocab=31, width=16, layers=2, head_size=8, kv_heads=1, tie_embeddings=False)),
  "mixtral": ("decoder", dict(vocab=31, width=16, layers=2, head_size=8, tie_embeddings=False, experts=3,
                              expert_capacity=0.0)),
  "bert": ("bert", dict(vocab=31, width=16, layers=2, head_size=8)),
  "vit": ("vit", dict(inputs=(8, 8, 3), outputs=3, patch=4, width=16, layers=2, head_size=8)),
}  # fmt: skip


def exported(kind, folder):
  """Makes a run with random weights and exports it; returns its parameters."""
  family, fields = SHAPES[kind]
  config = study.default_config(family)
  config.model.update(**fields)
  config.train.steps = 1
  if config.data.kind == "text":
    config.data.update(name="text_files", path="none", context=12)
  config = study.resolve_without_data(config)
  program = programs.program(config)
  state = program.init(0)
  params = {name: np.asarray(x) for name, x in to_flat(state.params).items()}
  store = Checkpoints(folder / "run" / "checkpoints")
  (folder / "run").mkdir(parents=True)
  store.save(3, jax.device_get(state))
  store.close()
  from bigmodel.config import flatten
  from bigmodel.files import write_json

  write_json(folder / "run" / "config.json", flatten(config))
  interchange.export_weights(folder / "run", str(folder / "there"), kind)
  return params


@pytest.mark.parametrize("kind", SHAPES)
def test_exported_weights_are_imported_bit_for_bit(kind, tmp_path, capsys):
  params = exported(kind, tmp_path)
  rows = models.real_rows(configs.read_config(tmp_path / "run"))
  assert main(["import", str(tmp_path / "there"), "--workdir", str(tmp_path / "back"), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["params_total"] == sum(
    x[: rows.get(name, len(x))].size for name, x in params.items()
  )
  store = Checkpoints(tmp_path / "back" / "checkpoints")
  back = store.arrays(0, parameters.PREFIX)
  store.close()
  assert back.keys() == {parameters.PREFIX + name for name in params}
  for name, value in params.items():
    np.testing.assert_array_equal(back[parameters.PREFIX + name], value)


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(tmp_path):
  from safetensors.numpy import load_file, save_file

  exported("gpt2", tmp_path)
  file = tmp_path / "there" / "model.safetensors"
  good = load_file(file)
  name = "h.1.mlp.c_fc.weight"
  for tensors, message in (
    ({k: v for k, v in good.items() if k != name}, f"no tensor '{name}'"),
    (good | {"h.1.mlp.extra": good[name]}, "unknown tensor 'h.1.mlp.extra'"),
    (good | {"h.7.mlp.c_fc.bias": good[name]}, "'h.7.mlp.c_fc.bias' .*left over, as config.json has fewer layers"),
    (good | {name: np.ones((16, 3), np.float32)}, rf"tensor '{name}' has the shape \(16, 3\), not \(16, 64\)"),
  ):
    save_file(tensors, file)
    with pytest.raises(UserError, match=message):
      interchange.import_weights(str(tmp_path / "there"), tmp_path / "back")
    assert not (tmp_path / "back").exists()
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
    interchange.import_weights(str(tmp_path / "there"), tmp_path / "back")


def test_models_that_an_architecture_cannot_represent_are_not_exported():
  config = study.default_config()
  config.model.update(vocab=31, qk_norm=True)
  config = study.resolve_without_data(config)
  with pytest.raises(UserError, match=r"a llama cannot have config.model.qk_norm = True"):
    huggingface.config_of("llama", config)
  with pytest.raises(UserError, match=r"a gpt2 cannot have config.model.norm = 'rms'"):
    huggingface.config_of("gpt2", config)
  with pytest.raises(UserError, match="a bert needs the family bert, not decoder"):
    huggingface.config_of("bert", config)
