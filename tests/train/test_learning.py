"""Tasks on real text: exact where they can be, and well below what knows the frequencies of bytes only."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bigmodel import study
from bigmodel.data import pipeline
from bigmodel.data.corpus import Corpus
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest

CONFIGS = Path(__file__).parents[2] / "configs"


def config_of(name):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def trained(config, folder):
  """The record of a run, and the loss of guessing by the frequencies of the training tokens."""
  run, data = study.single_run(config, folder)
  with Display(0, True) as display:
    (record,) = train_runs([run], data, display, StopRequest())
  assert isinstance(data, Corpus)
  counts = np.bincount(data.tokens["train"], minlength=data.vocab) + 1
  rows = pipeline.eval_rows(run.config, data).rows
  assert isinstance(rows, np.ndarray)
  held_out = rows[:, 1:]
  return record, float(-np.log(counts / counts.sum())[held_out].mean())


@pytest.mark.slow
def test_a_transformer_says_rows_backwards_exactly(tmp_path):
  record, _ = trained(config_of("reversal"), tmp_path)
  assert record.metrics["accuracy"] == 1.0


@pytest.mark.slow
def test_masked_tokens_are_guessed_from_both_sides(tmp_path):
  config = config_of("bert")
  config.train.tokens, config.model.width = 4_000_000, 64
  record, unigram = trained(config, tmp_path)
  assert record.loss < unigram - 1.0


@pytest.mark.slow
def test_the_second_half_of_a_row_is_said_after_the_first(tmp_path):
  config = config_of("reversal")
  config.task.target, config.data.context, config.train.steps = "next", 64, 1500
  record, unigram = trained(config, tmp_path)
  assert record.loss < unigram - 1.0


@pytest.mark.slow
def test_a_small_resnet_reaches_93_percent_on_fashion_mnist(tmp_path):
  config = config_of("resnet")
  if not Path("/usr/share/datasets/fashion-mnist").is_dir():
    pytest.skip("no dataset-fashion-mnist")
  config.train.tokens = 16 * 60_000
  config.optim.update(name="muon", lr=0.01)
  record, _ = train_on_images(config, tmp_path)
  assert record.metrics["accuracy"] >= 0.93


def train_on_images(config, folder):
  run, data = study.single_run(config, folder)
  with Display(0, True) as display:
    return train_runs([run], data, display, StopRequest())[0], data
