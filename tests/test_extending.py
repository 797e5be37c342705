"""Every example of docs/extending.md is written to the file that its first line names, and used."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import bigmodel
from bigmodel.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = {
  name: text for text, name in re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture(scope="module", autouse=True)
def folder(corpus_dir, tmp_path_factory):
  """The files of the examples, and a small version of the quickstart."""
  root = tmp_path_factory.mktemp("extending")
  for name, text in EXAMPLES.items():
    (root / name).write_text(text)
  (root / "configs").mkdir()
  (root / "configs" / "quickstart.py").write_text(f"""
import bigmodel

def get_config(arg=None):
  config = bigmodel.default_config()
  config.data.update(name="text_files", path={str(corpus_dir / "*.jsonl")!r}, heldout_fraction=0.2, context=32)
  config.model.update(layers=1, heads=2)
  config.train.update(batch_size=4)
  config.eval.tokens = 512
  return config
""")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    yield root


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_have_at_most_forty_lines(name):
  assert len(EXAMPLES[name].splitlines()) <= 40


def trained(config):
  """The record of a short run, and the loss before it."""
  config.train.update(steps=30, batch_size=32)
  config.eval.batch_size = 32
  if config.data.name == "idx_images":  # the default
    inputs = np.random.default_rng(0).normal(size=(160, 4))
    bigmodel.use_arrays(config, inputs, (inputs[:, 0] > 0).astype(int))
  return bigmodel.train_run(config, f"runs/{len(list(Path('runs').glob('*')))}").record


def test_an_optax_optimizer():
  config = bigmodel.default_config("mlp")
  config.model.hidden = (8,)
  config.optim.update(name="my_optimizer.py:lamb_direction", lr=0.1)
  assert trained(config).metrics["accuracy"] > 0.8


def test_a_flax_model():
  config = bigmodel.default_config("my_model.py:GatedNet")
  config.model.width = 16
  config.optim.update(name="muon", lr=0.02)  # which needs to know the roles of parameters
  assert trained(config).metrics["accuracy"] > 0.8


def test_a_loss():
  losses = []
  for gamma in (0.0, 2.0):
    config = bigmodel.default_config("mlp", "my_loss.py:focal")
    config.task.gamma, config.model.hidden = gamma, (8,)
    ended = trained(config)
    assert 0 <= ended.metrics["accuracy"] <= 1
    losses.append(ended.loss_eval)
  assert losses[1] < losses[0]


def test_a_numpy_data_source():
  config = bigmodel.default_config("mlp")
  config.data.name = "my_data.py:spirals"
  config.model.hidden, config.optim.lr = (16,), 0.02
  assert trained(config).metrics["accuracy"] > 0.7


def test_a_law():
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 1e8, 5), np.geomspace(1e6, 1e10, 5)))
  loss = 1.7 + 400 / (N + 3e5) ** 0.4 + 400 / D**0.3
  pl.DataFrame({"params_total": N, "tokens": D, "loss_eval": loss}).write_csv("runs.csv")
  fit = bigmodel.fit("runs.csv", "my_law.py:saturating")
  assert fit.params["alpha"] == pytest.approx(0.4, abs=0.02)
  assert fit.params["size"] == pytest.approx(3e5, rel=0.2)


def test_a_design():
  arguments = "study --config=my_study.py --workdir=runs/doubling --json"
  assert main.main(arguments.split()) == 0
  runs = bigmodel.load_study("runs/doubling")
  assert runs["model.width"].to_list() == [8, 16, 32]
  assert runs["tokens"].is_sorted()
