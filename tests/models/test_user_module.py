"""A plain Flax module in a user's file trains like a family of the package: config.model.family=FILE.py:NAME."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from handmade import losses_of, resolved  # its folder is on the path of pytest

import bigmodel
from bigmodel import models, optim, parallel, study
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.models.layers.roles import Role
from bigmodel.models.registry.flops import product_flops
from bigmodel.planner import analytic
from bigmodel.train import configs, loop, programs
from bigmodel.train.display import Display
from bigmodel.train.resolution import check_resolved
from bigmodel.train.run import Run, open_folder
from bigmodel.train.stop import StopRequest
from bigmodel.workers import packs

LANGUAGE_MODEL = '''
import flax.linen as nn
import jax


class Mixer(nn.Module):
  """A causal mixer: each token sees the mean of the tokens before it."""

  vocab: int = 0  # filled in by the data
  width: int = 16
  layers: int = 1

  @nn.compact
  def __call__(self, tokens_BxT):
    x_BxTxD = nn.Embed(self.vocab, self.width)(tokens_BxT)
    for _ in range(self.layers):
      count_T = 1 + jax.numpy.arange(tokens_BxT.shape[1])
      mean_BxTxD = jax.numpy.cumsum(nn.LayerNorm()(x_BxTxD), axis=1) / count_T[:, None]
      x_BxTxD = x_BxTxD + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(mean_BxTxD)))
    return nn.Dense(self.vocab)(x_BxTxD)
'''

CLASSIFIER = """
import flax.linen as nn


class Net(nn.Module):
  outputs: int = 0
  width: int = 8
  dropout: float = 0.0

  roles = {"Dense_0": "input", "Dense_1.kernel": "hidden", "Dense_2": "output", "bias": "bias"}

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.width)(x))
    x = nn.relu(nn.Dense(2 * self.width)(x))
    x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
    return nn.Dense(self.outputs)(x)
"""


@pytest.fixture
def mixer(config, tmp_path):
  """Returns a config of the small corpus with the user's model."""
  path = tmp_path / "mixer.py"
  path.write_text(LANGUAGE_MODEL)
  return configs.overridden(config, [f"model.family={path}:Mixer"])


def classifier(tmp_path, text=CLASSIFIER, name="Net"):
  """Returns a config of a user's model of examples; writes the examples beside the model."""
  path, rng = tmp_path / "net.py", np.random.default_rng(0)
  path.write_text(text)
  labels = np.arange(48) % 3
  np.savez(tmp_path / "table.npz", inputs=rng.standard_normal((48, 4)) + labels[:, None], targets=labels)
  config = study.default_config(f"{path}:{name}")
  config.data.update(name="arrays", path=str(tmp_path / "table.npz"))
  config.train.update(steps=6, batch_size=8, checkpoint_every=3, log_every=3)
  config.eval.update(batch_size=8)
  config.parallel.data = 1
  return config


def test_naming_a_model_adds_its_fields_and_keeps_values_that_were_set(config, tmp_path):
  path = tmp_path / "mixer.py"
  path.write_text(LANGUAGE_MODEL)
  config.optim.lr = 0.01
  new = configs.overridden(config, ["model.width=24", f"model.family={path}:Mixer", "train.steps=7"])
  assert new.model.family.startswith(f"{path}:Mixer@")
  assert {name: value for name, value in new.model.items() if name != "family"} == {
    "vocab": 0,
    "width": 24,
    "layers": 1,
  }
  assert (new.task.name, new.optim.lr, new.train.steps) == ("causal_lm", 0.01, 7)
  study.check(new)
  back = configs.overridden(new, ["model.family=decoder"])
  assert (back.model.width, back.model.head_size) == (24, 32)
  assert configs.overridden(config, ["model.family=mlp"]).task.name == "classification"
  assert bigmodel.load_config("configs/quickstart.py", [f"model.family={path}:Mixer"]).model.vocab == 0


def test_the_command_trains_evaluates_and_resumes_to_the_same_bits(mixer, tmp_path, inside, corpus_dir):
  (tmp_path / "config.py").write_text(f"""
from bigmodel.study import default_config

def get_config(arg=None):
  config = default_config()
  config.data.update(name="text_files", path="{corpus_dir / "*.jsonl"}", heldout_fraction=0.2, context=32)
  config.train.update(steps=6, batch_size=8, checkpoint_every=3, log_every=3)
  config.eval.tokens = 512
  config.parallel.data = 1
  return config
""")
  family = f"--config.model.family={tmp_path / 'mixer.py'}:Mixer"
  records = []
  for name in ("whole", "resumed"):
    folder = tmp_path / name
    arguments = ("train", f"--config={tmp_path / 'config.py'}", f"--workdir={folder}", family, "--json")
    code, out, err = inside(*arguments)
    assert code == 0, err
    records.append(json.loads(out))
    if name == "resumed":  # as if it had been killed after its first checkpoint
      (folder / "record.json").unlink()
      last = max((folder / "checkpoints").iterdir(), key=lambda path: int("".join(filter(str.isdigit, path.name)) or 0))
      shutil.rmtree(last)
      records[-1] = json.loads(inside(*arguments)[1])
  assert records[0]["result_sha256"] == records[1]["result_sha256"]
  assert records[0]["model"]["family"].startswith("Mixer@")


def test_changing_the_file_changes_the_run_id_and_moving_it_does_not(mixer, tmp_path):
  def run_id(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "mixer.py").write_text(text)
    config = configs.renamed(mixer, f"{folder / 'mixer.py'}:Mixer")
    return Run(resolved(config)[0], folder).run_id

  first = run_id(tmp_path / "a", LANGUAGE_MODEL)
  assert run_id(tmp_path / "b", LANGUAGE_MODEL) == first
  assert run_id(tmp_path / "a", LANGUAGE_MODEL + "\n# changed") != first


def test_eight_devices_agree_with_one(mixer):
  alone = losses_of(mixer)
  for mesh in ({"data": 8}, {"data": 2, "fsdp": 4}):
    spread = losses_of(study.with_overrides(mixer, {f"parallel.{name}": size for name, size in mesh.items()}))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


def test_axes_that_a_model_names_are_sharded(tmp_path, mixer):
  init = 'nn.with_logical_partitioning(nn.linear.default_embed_init, ("vocab", "embed"))'
  text = LANGUAGE_MODEL.replace(
    "nn.Embed(self.vocab, self.width)", f"nn.Embed(self.vocab, self.width, embedding_init={init})"
  )
  assert init in text
  (tmp_path / "named.py").write_text(text)
  config = configs.renamed(mixer, f"{tmp_path / 'named.py'}:Mixer")
  config.parallel.update(data=2, fsdp=4)
  config, _ = resolved(config)
  program = programs.program(config)
  (embedding,) = jax.tree.leaves(program.init(0).params["Embed_0"])
  assert embedding.sharding.shard_shape(embedding.shape) == (embedding.shape[0], 4)
  np.testing.assert_allclose(losses_of(config), losses_of(mixer), rtol=1e-5)


def test_parameters_and_flops_are_counted(mixer, tmp_path):
  config, _ = resolved(mixer)
  V, D, F = config.model.vocab, 16, 32
  counts = models.counts_of(config)
  assert counts.params_total == V * D + 2 * D + (D * F + F) + (F * D + D) + (D * V + V)
  assert counts.exact_per_token == 3 * 2 * (2 * D * F + D * V)
  assert models.shape_of(config).describe()["width"] == 16
  counts = models.counts_of(resolved(classifier(tmp_path))[0])
  assert counts.exact_per_token == 3 * 2 * (4 * 8 + 8 * 16 + 16 * 3)


@pytest.mark.parametrize(("family", "shape"), [("mlp", (5,)), ("resnet", (32, 32, 3)), ("alexnet", (67, 67, 3))])
def test_counted_products_equal_those_that_families_state(family, shape):
  config = study.default_config(family)
  config.model.update(inputs=shape, outputs=3)
  example = jax.ShapeDtypeStruct((2, *shape), np.float32)
  model, params = models.build(config), nn.meta.unbox(models.abstract_parameters(config))
  flops = product_flops(lambda params, x: model.apply({"params": params}, x)[0], params, example)
  assert 3 * flops / 2 == models.counts_of(config).exact_per_token


def test_products_in_loops_count_per_iteration_and_in_branches_once():
  def square_often(x):
    x = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

  assert product_flops(square_often, jax.ShapeDtypeStruct((4, 4), np.float32)) == (5 + 2) * 2 * 4**3


def test_parameters_without_roles_get_no_optimizer_of_hidden_matrices(mixer, tmp_path):
  mixer.optim.name = "muon"
  config, _ = resolved(mixer)
  assert not any(label.is_hidden for _, label in models.labels(config))
  state = jax.eval_shape(
    lambda: optim.initial_state(optim.How.of(config), nn.meta.unbox(models.abstract_parameters(config)))
  )
  held = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
  assert any("adam" in name and "kernel" in name for name in held)
  assert not any("hidden" in name and "kernel" in name for name in held)
  labels = models.labels(resolved(classifier(tmp_path))[0]).by_name
  assert {name for name, label in labels.items() if label.is_hidden} == {"Dense_1.kernel"}
  assert labels["Dense_2.kernel"].role is Role.OUTPUT


def test_sizes_transfer_only_where_all_roles_are_declared(mixer, tmp_path):
  mixer.optim.update(parametrization="mup", base=("model.width=8",))
  with pytest.raises(
    UserError, match=r"mup needs the roles of all parameters; .*Mixer@\w+ declares none for \['Dense_0"
  ):
    check_resolved(*resolved(mixer))
  config = classifier(tmp_path)
  config.optim.update(parametrization="mup", base=("model.width=4",))
  found = {name: rest for name, *rest in optim.parametrization.multiples(resolved(config)[0])}
  assert found["Dense_1.kernel"][1] == 0.5  # its rate, at twice the base's width
  assert found["Dense_2.kernel"][1] == 0.5


def test_dropout_is_active_in_training_only(tmp_path):
  config, _ = resolved(study.with_overrides(classifier(tmp_path), {"model.dropout": 0.5}))
  model = models.build(config)
  params = nn.meta.unbox(model.init(jax.random.key(0), *models.example(config)))
  x = np.ones((4, 4), np.float32)
  evaluated, trained = (model.apply(params, x, rngs=rngs)[0] for rngs in (None, {"dropout": jax.random.key(1)}))
  np.testing.assert_array_equal(evaluated[0], evaluated[1])
  assert (trained[0] != trained[1]).any()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (("class Net(nn.Module)", "class Net"), r"Net@\w+ is a type, not a class of Flax modules"),
    (("outputs: int = 0", "classes: int = 0"), r"needs a field 'vocab: int = 0' if it reads tokens"),
    (("width: int = 8", "width: int"), r"the attribute 'width' has no default"),
    (('"hidden"', '"hiden"'), r"no role 'hiden' \(did you mean 'hidden'\?\)"),
    (('"Dense_2"', '"Dense_7"'), r"its roles contain \['Dense_7'\], which matches no parameter"),
    (("self.outputs)(x)", "self.outputs + 1)(x)"), r"gives outputs of shape \[1, 4\] .* they must be \[1, 3\]"),
    (("nn.relu(nn.Dense(self", "nn.silly(nn.Dense(self"), r"fails on inputs float32\[1, 4\]: AttributeError: .*silly"),
    (("return nn.Dense", "return 1, nn.Dense"), r"gives a tuple, not an array"),
    (
      ("    x = nn.Dropout", "    x = nn.BatchNorm(False)(x)\n    x = nn.Dropout"),
      r"keeps batch_stats besides parameters",
    ),
  ],
)
def test_a_wrong_definition_is_refused_in_one_line(change, message, tmp_path):
  text = CLASSIFIER.replace(*change)
  assert text != CLASSIFIER
  if "has no default" in message:
    text = text.replace("outputs: int = 0\n  width: int", "width: int\n  outputs: int = 0")
  with pytest.raises(UserError, match=message) as caught:
    resolved(classifier(tmp_path, text))
  assert "\n" not in str(caught.value)


def test_the_command_refuses_a_wrong_definition_with_exit_code_2(config, tmp_path, inside):
  (tmp_path / "net.py").write_text(CLASSIFIER)
  (tmp_path / "config.py").write_text(
    "from bigmodel.study import default_config\nget_config = lambda arg=None: default_config()\n"
  )
  code, _, err = inside(
    "train",
    f"--config={tmp_path / 'config.py'}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.model.family={tmp_path / 'net.py'}:Ned",
  )
  assert code == 2
  assert "defines no 'Ned' (did you mean 'Net'?)" in err
  assert not (tmp_path / "run").exists()


def test_reduced_precision_needs_an_attribute_dtype(tmp_path):
  config = classifier(tmp_path)
  config.train.compute_dtype = "bfloat16"
  with pytest.raises(UserError, match=r"compute_dtype: bfloat16, but .*Net@\w+ has no attribute 'dtype'"):
    resolved(config)
  text = CLASSIFIER.replace("  roles", "  dtype: str = 'float32'\n\n  roles").replace(
    "(self.width)", "(self.width, dtype=self.dtype)"
  )
  config = classifier(tmp_path, text)
  config.train.compute_dtype = "bfloat16"
  assert "dtype" not in config.model
  assert np.isfinite(losses_of(config, 2)).all()


def test_runs_of_a_sweep_train_in_one_program(tmp_path):
  config = classifier(tmp_path)
  data = pipeline.prepare(config)
  configs = [study.resolve(study.with_overrides(config, {"optim.lr": lr}), data) for lr in (0.01, 0.02)]
  runs = [Run(config, tmp_path / f"run{i}") for i, config in enumerate(configs)]
  assert packs.program_key(runs[0]) == packs.program_key(runs[1])
  for run in runs:
    open_folder(run)
  records = loop.train_runs(runs, data, Display(quiet=True), StopRequest())
  assert [record.status for record in records] == ["finished"] * 2
  assert records[0].loss_eval != records[1].loss_eval
  assert "accuracy" in records[0].metrics


def test_a_run_is_planned(mixer):
  config = study.resolve_for_plan(mixer, 1)
  estimate = analytic.estimate(config, dict.fromkeys(parallel.AXES, 1), None)
  assert estimate.parts["parameters"] == 4 * models.counts_of(config).params_total
