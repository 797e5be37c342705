"""Optimizers that users define in their files, and built-in optimizers that declare fields."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from handmade import labels_of  # its folder is on the path of pytest

from bigmodel import optim, parallel, study
from bigmodel.config import flatten
from bigmodel.declarations import COMPILED, TRACED
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import absolute
from bigmodel.planner import analytic
from bigmodel.train import configs, programs
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.run import Run, run_id
from bigmodel.train.stop import StopRequest
from bigmodel.workers import packs

# Also in docs/extending.md.
LAMB = '''
"""LAMB (You et al. 2020): Adam's direction, as long as the parameter it moves."""
import optax


def lamb(beta1, beta2, epsilon, trust: float = 1.0):
  adam = optax.scale_by_adam(beta1, beta2, epsilon)
  return optax.chain(adam, optax.scale_by_trust_ratio(trust_coefficient=trust))
'''


def file_of(folder, text, name="mine"):
  path = folder / "mine.py"
  path.write_text("import optax, jax.numpy as jnp\nfrom bigmodel.optim import Step, optimizer\n" + text)
  return f"{path}:{name}"


@pytest.fixture
def with_lamb(resolved, tmp_path):
  """A resolved config with a user's optimizer, and its data."""
  config, corpus = resolved
  (tmp_path / "lamb.py").write_text(LAMB)
  config.optim.name = f"{tmp_path / 'lamb.py'}:lamb"
  config.optim.update(lr=0.05)
  config.train.update(steps=6, checkpoint_every=100, log_every=2)
  optim.check(config)
  configs.complete_names(config)
  return config, corpus


def changed(config, **values):
  changed_config = config.copy_and_resolve_references()
  changed_config.optim.update(values)
  return changed_config


def train(runs, corpus, stop=None):
  return train_runs(runs, corpus, Display(quiet=True), stop or StopRequest())


def test_a_user_optimizer_trains_packs_over_its_number_and_resumes_to_the_same_bits(with_lamb, tmp_path, stop_at):
  config, corpus = with_lamb
  runs = [Run(changed(config, trust=trust), absolute(tmp_path / f"{trust}")) for trust in (1.0, 0.1)]
  assert runs[0].run_id != runs[1].run_id
  assert packs.program_key(runs[0]) == packs.program_key(runs[1])
  ended = train(runs, corpus)
  alone = dataclasses.replace(runs[1], folder=absolute(tmp_path / "alone"))
  with pytest.raises(Interrupted):
    train([alone], corpus, stop_at(3))
  (resumed,) = train([alone], corpus)
  (whole,) = train([dataclasses.replace(alone, folder=absolute(tmp_path / "whole"))], corpus)
  assert resumed.result_sha256 == whole.result_sha256
  losses = [record.loss_eval or math.inf for record in ended]
  assert whole.loss_eval == pytest.approx(losses[1], rel=1e-5)
  assert abs(losses[0] - losses[1]) > 1e-3
  assert losses[0] < 4.5  # before training it is about log(257) = 5.5


def test_the_state_of_a_user_optimizer_is_sharded_and_priced(with_lamb):
  config, _ = with_lamb
  config.model.vocab = 264
  states = {}
  for name in (config.optim.name, "adamw"):
    changed_config = changed(config, name=name)
    changed_config.parallel.update(data=1, fsdp=8)
    state = programs.program(changed_config).shapes.opt_state
    states[name] = [(x.shape, x.sharding.spec) for x in jax.tree.leaves(state) if x.ndim]
  assert states[config.optim.name] == states["adamw"]
  assert any("fsdp" in str(spec) for _, spec in states["adamw"])
  sizes = dict.fromkeys(parallel.AXES, 1) | {"fsdp": 8}
  lamb, adam = (analytic.state_bytes(changed(config, name=name), sizes) for name in states)
  assert lamb == adam


def test_learning_rate_decay_and_clipping_apply_to_a_direction_and_not_to_complete_updates(tmp_path):
  """A function without the parameter `learning_rate` returns a direction; with it, complete updates."""
  params, grads = {"w": jnp.full((2, 2), 2.0)}, {"w": jnp.full((2, 2), 8.0)}
  for text, expected in (
    ("def mine(): return optax.identity()", 2.0 - 0.5 * (0.5 + 0.25 * 2.0)),  # the norm of 16 is clipped to 1
    ("def mine(learning_rate): return optax.sgd(learning_rate)", 2.0 - 0.5 * 0.5),
    ("def mine(learning_rate, weight_decay): return optax.sgd(learning_rate * weight_decay)", 2.0 - 0.5 * 0.25 * 0.5),
  ):
    config = study.default_config()
    config.optim.update(name=file_of(tmp_path, text), lr=0.5, weight_decay=0.25, schedule="constant", warmup=0.0)
    how, h = optim.How.of(config, labels_of(params)), optim.hyperparameters(config, 10)
    new, _, _ = optim.update(how, grads, optim.initial_state(how, params), params, jnp.int32(0), h)
    np.testing.assert_allclose(new["w"], expected, rtol=1e-6)


def test_float_arguments_are_traced_and_others_compiled(tmp_path):
  name = file_of(tmp_path, "def mine(beta1, pull=0.5, often=3, nesterov=True): return optax.trace(beta1)")
  added = {field: one for field, one in optim.declared(name).items() if field not in optim.declared()}
  assert {field: (one.default, one.use) for field, one in added.items()} == {
    "pull": (0.5, TRACED),
    "often": (3, COMPILED),
    "nesterov": (True, COMPILED),
  }
  config = configs.with_overrides(study.default_config(), {"optim.pull": 0.25, "optim.name": name})
  how, h = optim.How.of(config, labels_of({})), optim.hyperparameters(config, 10)
  assert h.numbers["pull"] == 0.25
  assert {"often", "nesterov"} <= set(dict(how.compiled))
  back = configs.with_overrides(config, {"optim.name": "lion"})
  assert set(flatten(back)) == set(flatten(study.default_config()))
  with pytest.raises(UserError, match=r"config\.optim\.beta2: 0\.5 has no effect on mine\.py:mine"):
    optim.check(configs.with_overrides(config, {"optim.beta2": 0.5}))
  config = study.default_config()
  config.optim.name, config.optim.often, config.optim.pull = name, 0.5, 1
  configs.add_fields(config)
  assert type(config.optim.pull) is float
  with pytest.raises(UserError, match=r"config\.optim\.often: 0\.5 is not of type int"):
    optim.check(config)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("mine = 3", "is 3, and not a function"),
    ("def mine(): return 3", "returns int, and not an optax.GradientTransformation"),
    ("def mine(*rates): ...", "'rates' has no name by which a config could set it"),
    ("def mine(trust): ...", "'trust' has no default and is no field of config.optim"),
    ("def mine(trust=None): ...", "'trust' has the default None; it must be a float, int, bool, str or tuple"),
    ("def mine(beta1=0.5): ...", "'beta1' has a default, but is a field of every config, whose default is 0.9"),
    ("def mine(learning_rate=0.1): ...", "'learning_rate' has a default, which would have no effect"),
    ("def mine(clip): ...", "'clip' is a field of config.optim that is applied already"),
    ("def mine(): return optax.adam(0.1)", "its updates go uphill; without the parameter 'learning_rate'"),
    ("def mine(learning_rate): return optax.scale(learning_rate)", "its updates go uphill; with the parameter"),
    ("def mine(x=0.5): return optax.scale(2 if x > 1 else 1)", "needs the value of a float while it is traced"),
    ("def mine(x=0.5): return optax.scale(y)", "the function fails: NameError: name 'y' is not defined"),
    ("def mine(): return optax.stateless(lambda u, p: u['v'])", "update of its transformation fails: KeyError: 'v'"),
    ("def mine(): return optax.stateless(lambda u, p: u['w'])", "differ from parameters in shapes or types"),
    (
      "def mine(x=0.5): return optax.inject_hyperparams(optax.scale)(step_size=x)",
      "its initial state depends on its numbers",
    ),
  ],
)
def test_an_invalid_definition_is_refused_in_one_line(tmp_path, text, message):
  config = study.default_config()
  config.optim.name = file_of(tmp_path, text)
  with pytest.raises(UserError, match=r"^config\.optim\.name: mine.py:mine[: ]") as caught:
    optim.check(config)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_parametrization_needs_the_scale_of_a_user_optimizer(tmp_path):
  config = study.default_config()
  config.optim.update(parametrization="mup", base=("model.width=16",))
  config.optim.name = file_of(tmp_path, "def mine(): return optax.identity()")
  with pytest.raises(UserError, match=r"mup needs to know how the steps of mine.py:mine scale: declare it"):
    optim.check(config)
  config.optim.name = file_of(tmp_path, "@optimizer(step=Step.GRADIENT)\ndef mine(): return optax.identity()")
  optim.check(config)


PULLING = """
_PULL = Field(0.5, "strength", NOT_NEGATIVE, TRACED, added_later=True)


@optimizer(step=Step.ENTRY, fields={"pull": _PULL})
def pulling(beta1: Number, pull: Number) -> optax.GradientTransformation:
  return optax.chain(optax.trace(beta1), optax.scale(pull))


"""
ASK = """
import json
import math
from bigmodel import optim, study
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.train.run import Run, run_id
from bigmodel.workers import packs

def run(**fields):
  config = study.default_config()
  config.optim.update(fields)
  return Run(config, absolute("x"))

def refusal(**fields):
  try:
    optim.check(run(**fields).config)
  except UserError as error:
    return str(error)

runs = [run(name="pulling", pull=pull) for pull in (0.5, 0.25)]
print(json.dumps({
  "default": study.default_config().optim.pull,
  "ids": {name: run(name=name).run_id for name in ("adamw", "muon")},
  "refusals": [refusal(pull=0.25), refusal(name="pulling", pull=-1.0), refusal(name="pulling", pull=2.0)],
  "traced": float(optim.hyperparameters(runs[1].config, 10).numbers["pull"]),
  "separate_runs": runs[0].run_id != runs[1].run_id,
  "one_program": packs.program_key(runs[0]) == packs.program_key(runs[1]),
}))
"""


def test_a_built_in_optimizer_with_a_field_is_one_function(tmp_path):
  """The field, its tracing, the check of its effect and the run's id follow from the definition."""
  package = Path(optim.__file__).parent.parent
  shutil.copytree(package, tmp_path / "bigmodel", ignore=shutil.ignore_patterns("__pycache__"))
  file = tmp_path / "bigmodel" / "optim" / "optimizers.py"
  file.write_text(file.read_text().replace("def layerwise(", PULLING + "def layerwise(", 1))
  environment = os.environ | {"PYTHONPATH": str(tmp_path)}
  text = subprocess.run(
    [sys.executable, "-c", ASK], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
  ).stdout
  assert json.loads(text) == {
    "default": 0.5,
    "ids": {name: run_id(changed(study.default_config(), name=name)) for name in ("adamw", "muon")},
    "refusals": [
      "config.optim.pull: 0.25 has no effect on adamw; leave it at its default, 0.5",
      "config.optim.pull: -1.0 is negative",
      None,
    ],
    "traced": 0.25,
    "separate_runs": True,
    "one_program": True,
  }
