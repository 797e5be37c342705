"""A loss function in a user's file trains like a task of the package: config.task.name=FILE.py:NAME."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from handmade import losses_of, resolved  # its folder is on the path of pytest

from bigmodel import study, tasks
from bigmodel.errors import UserError
from bigmodel.train import configs
from bigmodel.train.run import Run

SMOOTH_L1 = """
import jax.numpy as jnp


def smooth_l1(outputs_BxO, batch, beta=1.0):
  error_B = abs(outputs_BxO[:, 0] - batch["targets"])
  loss_B = jnp.where(error_B < beta, 0.5 * error_B**2 / beta, error_B - 0.5 * beta)
  return loss_B, {"absolute_error": error_B}
"""

FOCAL = """
import jax
import jax.numpy as jnp


def focal(logits, batch, gamma=0.0):
  log_probability = jax.nn.log_softmax(logits)
  of_target = jnp.take_along_axis(log_probability, batch["targets"][..., None], axis=-1)[..., 0]
  return -((1 - jnp.exp(of_target)) ** gamma) * of_target
"""


def write(tmp_path, text=SMOOTH_L1):
  path = tmp_path / "losses.py"
  path.write_text(text)
  return path


def of_numbers(tmp_path, text=SMOOTH_L1, name="smooth_l1"):
  """Returns a config of a small network for numeric targets with a user's loss."""
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((48, 4))
  np.savez(tmp_path / "table.npz", inputs=inputs, targets=inputs.sum(axis=1))
  config = study.default_config("mlp", f"{write(tmp_path, text)}:{name}")
  config.task.targets = "numbers"
  config.model.hidden = (8,)
  config.data.update(name="arrays", path=str(tmp_path / "table.npz"))
  config.train.update(steps=6, batch_size=8, checkpoint_every=3, log_every=3)
  config.eval.update(batch_size=8)
  config.parallel.data = 1
  return config


def test_a_user_loss_that_equals_a_task_trains_like_that_task(config, tmp_path):
  """A focal loss with gamma = 0 is the cross-entropy, for text and for classes."""
  expected = losses_of(config)
  own = configs.overridden(config, [f"task.name={write(tmp_path, FOCAL)}:focal"])
  assert (own.task.gamma, own.model.width, own.data.context) == (0.0, 16, 32)
  np.testing.assert_allclose(losses_of(own), expected, rtol=1e-6)
  own.task.gamma = 2.0
  assert losses_of(own)[0] < 0.999 * expected[0]  # (1 - 1/257)^2


def test_the_command_trains_evaluates_and_resumes_to_the_same_bits(tmp_path, inside):
  of_numbers(tmp_path)
  (tmp_path / "config.py").write_text(f"""
from bigmodel.study import default_config

def get_config(arg=None):
  config = default_config("mlp", "regression")
  config.data.update(name="arrays", path="{tmp_path / "table.npz"}")
  config.train.update(steps=6, batch_size=8, checkpoint_every=3, log_every=3)
  config.eval.batch_size = 8
  config.parallel.data = 1
  return config
""")
  records = []
  for name in ("whole", "resumed"):
    folder = tmp_path / name
    arguments = ["train", f"--config={tmp_path / 'config.py'}", f"--workdir={folder}", "--json"]
    arguments += [f"--config.task.name={tmp_path / 'losses.py'}:smooth_l1", "--config.task.targets=numbers"]
    code, out, err = inside(*arguments, "--config.task.beta=0.5")
    assert code == 0, err
    records.append(json.loads(out))
    if name == "resumed":  # as if it had been killed after its first checkpoint
      (folder / "record.json").unlink()
      last = max((folder / "checkpoints").iterdir(), key=lambda path: path.name)
      shutil.rmtree(last)
      records[-1] = json.loads(inside(*arguments, "--config.task.beta=0.5")[1])
  assert records[0]["result_sha256"] == records[1]["result_sha256"]
  assert records[0]["metrics"]["absolute_error"] > 0
  assert records[0]["loss_eval"] > 0


def test_changing_the_file_changes_the_run_id_and_moving_it_does_not(tmp_path):
  config = of_numbers(tmp_path)

  def run_id(name, text):
    (tmp_path / name).mkdir(exist_ok=True)
    config.task.name = f"{write(tmp_path / name, text)}:smooth_l1"
    return Run(resolved(config)[0], tmp_path).run_id

  first = run_id("a", SMOOTH_L1)
  assert run_id("b", SMOOTH_L1) == first
  assert run_id("a", SMOOTH_L1 + "\n# changed\n") != first


def test_eight_devices_agree_with_one(tmp_path):
  config = of_numbers(tmp_path)
  alone = losses_of(config)
  np.testing.assert_allclose(losses_of(study.with_overrides(config, {"parallel.data": 8})), alone, rtol=1e-5)


def test_experts_keep_their_losses(config, tmp_path):
  """The router of a mixture of experts trains with any user's loss."""
  config.model.update(experts=2)
  config.task.balance_loss = 1.0
  own = configs.overridden(config, [f"task.name={write(tmp_path, FOCAL)}:focal"])
  assert own.task.balance_loss == 1.0
  np.testing.assert_allclose(losses_of(own), losses_of(config), rtol=1e-6)
  task = tasks.build(resolved(own)[0])
  h = {name: jnp.float32(value) for name, value in tasks.traced(own).items()}
  balance = {"balance_loss": jnp.float32(3.0), "router_z_loss": jnp.float32(0.0)}
  outputs = jnp.zeros((2, 32, own.model.vocab or 257))
  rows = jnp.zeros((2, 33), jnp.int32)

  def objective(auxiliary):
    return float(task.objective(lambda inputs: (outputs, auxiliary), rows, h, jax.random.key(0))[0])

  assert objective(balance) - objective({}) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (("def smooth_l1(outputs_BxO, batch, beta=1.0)", "def smooth_l1(batch)"), r"must take \(outputs, batch\)"),
    (("beta=1.0", "beta"), r"the argument 'beta' has no default that a config can hold"),
    (("beta=1.0", "targets=1.0, beta=1.0"), r"the argument 'targets' is a field of every task"),
    (
      ("return loss_B,", "return loss_B.mean(),"),
      r"its loss has shape \[\]; it must be \[2\], a number for each example",
    ),
    (('{"absolute_error": error_B}', '{"absolute_error": error_B[:1]}'), r"its absolute_error has shape \[1\]"),
    (('{"absolute_error": error_B}', "error_B"), r"returns metrics that are not a dictionary"),
    (('batch["targets"]', 'batch["labels"]'), r"fails on outputs of shape \[2, 1\]: KeyError: 'labels'"),
    (("def smooth_l1", "smooth_l1 = 3\n\ndef other"), r"is a int, not a function"),
  ],
)
def test_a_wrong_definition_is_refused_in_one_line(change, message, tmp_path):
  text = SMOOTH_L1.replace(*change)
  assert text != SMOOTH_L1
  with pytest.raises(UserError, match=message) as caught:
    resolved(of_numbers(tmp_path, text))
  assert str(caught.value).startswith("config.task.name: ")
  assert "\n" not in str(caught.value)
