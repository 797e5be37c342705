"""Evaluation: the standard error over documents equals that of resampling documents."""

import math

import numpy as np
import pytest

from bigmodel.data import pipeline
from bigmodel.train import programs
from bigmodel.train.evaluate import clustered_mean, evaluate, judge, measure


@pytest.mark.parametrize("weighted", [False, True])
def test_standard_error_of_clusters_equals_that_of_resampling_clusters(weighted):
  rng = np.random.default_rng(0)
  sizes = rng.integers(5, 50, 80)
  clusters = np.repeat(np.arange(80), sizes)
  values = rng.normal(size=80)[clusters] + rng.normal(size=len(clusters))
  weights = rng.integers(0, 2, len(clusters)).astype(float) if weighted else np.ones(len(clusters))
  mean, stderr = clustered_mean(values, clusters, weights)
  assert mean == pytest.approx(np.average(values, weights=weights))
  sums, sizes = np.bincount(clusters, values * weights), np.bincount(clusters, weights)
  draws = rng.integers(0, 80, (20_000, 80))
  resampled = sums[draws].sum(1) / sizes[draws].sum(1)
  assert stderr == pytest.approx(resampled.std(), rel=0.05)  # 20,000 resamples
  naive = values.std() / math.sqrt(len(values))
  assert stderr > 2 * naive


def test_one_document_has_no_standard_error():
  assert math.isnan(clustered_mean(np.ones(4), np.zeros(4, int), np.ones(4))[1])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_does_not_depend_on_the_batch_size(resolved, batch_size):
  config, corpus = resolved
  program = programs.program(config)
  params = program.init(0).params
  rows = pipeline.eval_rows(config, corpus)
  expected = evaluate(program, params, config, rows)
  config.eval.batch_size = batch_size
  again = evaluate(program, params, config, rows)
  for name in ("loss", "loss_stderr", "bits_per_byte"):
    assert getattr(again, name) == pytest.approx(getattr(expected, name), rel=1e-5)  # losses of another program
  assert again.metrics == pytest.approx(expected.metrics, rel=1e-4)
  # An untrained model is close to uniform over 257 tokens; a byte holds log2(257) bits of it.
  assert expected.loss == pytest.approx(math.log(257), rel=0.25)
  assert rows.bytes is not None
  tokens_per_byte = rows.clusters.size / rows.bytes.sum()
  assert expected.bits_per_byte == pytest.approx(expected.loss / math.log(2) * tokens_per_byte)


def test_members_of_a_pack_are_evaluated_like_single_runs(resolved):
  config, corpus = resolved
  pack = programs.program(config, 16)
  assert pack.at_once == 16 > pack.mesh.size
  params = [pack.init(seed).params for seed in range(11)]
  rows = pipeline.eval_rows(config, corpus)
  together = [judge(config, rows, values) for values in measure(pack, params, config, rows, lambda: None)]
  alone = [evaluate(programs.program(config), one, config, rows) for one in params]
  np.testing.assert_allclose([one.loss for one in together], [one.loss for one in alone], rtol=1e-6)
  assert len({round(one.loss, 4) for one in alone}) == len(params)
