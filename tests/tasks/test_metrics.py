"""Metrics: equal to scikit-learn's, the same on one device and on eight, and intervals that cover."""

import jax
import numpy as np
import pytest
from jax import enable_x64
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from bigmodel.tasks import metrics
from bigmodel.tasks.task import OF_MEANS

CASES = pytest.mark.parametrize("cases", [40, pytest.param(1000, marks=pytest.mark.slow)])


def case(seed):
  """Returns (scores [N, C], labels, predictions, weights), with ties and classes without examples."""
  rng = np.random.default_rng(seed)
  C, N = int(rng.integers(2, 6)), int(rng.integers(5, 40))
  share = rng.dirichlet(np.ones(C)) * (rng.random(C) > 0.2) + 1e-12
  label = rng.choice(C, size=N, p=share / share.sum())
  score = np.round(rng.random((N, C)) + 0.5 * np.eye(C)[label], int(rng.integers(1, 4))) + 1e-9
  weight = rng.integers(1, 4, N) * 1.0 if seed % 3 else np.ones(N)
  return score / score.sum(axis=1, keepdims=True), label, weight


@CASES
@pytest.mark.filterwarnings("ignore")
def test_metrics_equal_those_of_scikit_learn(cases):
  for seed in range(cases):
    score, label, weight = case(seed)
    C, predicted = score.shape[1], score.argmax(axis=1)
    ours = metrics.of_classes(score, label)(weight)
    matrix = metrics.confusion(label, predicted, weight, C)
    np.testing.assert_allclose(
      matrix, theirs.confusion_matrix(label, predicted, labels=range(C), sample_weight=weight), atol=1e-6
    )
    expected = {"accuracy": theirs.accuracy_score(label, predicted, sample_weight=weight)}
    for average in metrics.AVERAGES:
      four = theirs.precision_recall_fscore_support(label, predicted, average=average, sample_weight=weight)
      three = np.array(four[:3], float)
      expected |= {f"{name}_{average}": x for name, x in zip(("precision", "recall", "f1"), three, strict=True)}
    for name, value in expected.items():
      np.testing.assert_allclose(ours[name], value, atol=1e-6, err_msg=f"{name}, case {seed}")
    for c in range(C):
      yes = label == c
      if 0 < yes.sum() < len(yes):
        auc = theirs.roc_auc_score(yes, score[:, c], sample_weight=weight)
        np.testing.assert_allclose(metrics.roc_auc(score[:, c], yes, weight), auc, atol=1e-6)
      else:
        assert np.isnan(metrics.roc_auc(score[:, c], yes, weight))
      precise = theirs.average_precision_score(yes, score[:, c], sample_weight=weight)
      np.testing.assert_allclose(metrics.average_precision(score[:, c], yes, weight), precise, atol=1e-6)
    if C > 2 and len(set(label)) == C:
      auc = theirs.roc_auc_score(label, score, multi_class="ovr", sample_weight=weight)
      np.testing.assert_allclose(ours["roc_auc"], auc, atol=1e-6)
      np.testing.assert_allclose(
        ours["pr_auc"], theirs.average_precision_score(label, score, sample_weight=weight), atol=1e-6
      )
    hits, confidence = calibration_curve(label == 1, score[:, 1], n_bins=10)
    curve = metrics.reliability(score[:, 1], label == 1, np.ones(len(label)))
    np.testing.assert_allclose(curve["hits"][curve["weight"] > 0], hits, atol=1e-6)
    np.testing.assert_allclose(curve["confidence"][curve["weight"] > 0], confidence, atol=1e-6)


@CASES
def test_metrics_of_numbers_equal_those_of_scikit_learn(cases):
  for seed in range(cases):
    rng = np.random.default_rng(seed)
    N = int(rng.integers(2, 30))
    target, weight = np.round(rng.normal(size=N), 1), rng.integers(1, 4, N) * 1.0
    if seed % 10 == 0:
      target[:] = target[0]  # nothing to explain
    guess = target + rng.normal(size=N) * (seed % 7 > 0)
    ours = metrics.regression(guess, target, weight)
    np.testing.assert_allclose(ours["mse"], theirs.mean_squared_error(target, guess, sample_weight=weight), atol=1e-6)
    np.testing.assert_allclose(ours["mae"], theirs.mean_absolute_error(target, guess, sample_weight=weight), atol=1e-6)
    np.testing.assert_allclose(ours["r2"], theirs.r2_score(target, guess, sample_weight=weight), rtol=1e-6, atol=1e-6)
    quantile = rng.random()
    expected = theirs.mean_pinball_loss(target, guess, sample_weight=weight, alpha=quantile)
    np.testing.assert_allclose(metrics.pinball(guess, target, weight, quantile), expected, atol=1e-6)


def test_eight_devices_give_the_same_and_gather_only_scores_to_rank():
  mesh = Mesh(np.array(jax.devices()), ("data",))
  spread = NamedSharding(mesh, PartitionSpec("data"))
  whole = jax.jit(lambda s, y, w: metrics.of_classes(s, y)(w))
  sums = jax.jit(lambda s, y, w: metrics.decisions(metrics.confusion(y, s.argmax(axis=1), w, 3)))
  program = ""
  with enable_x64():
    for seed in range(20):
      rng = np.random.default_rng(seed)
      label, weight = rng.integers(0, 3 - seed % 2, 80), rng.integers(1, 4, 80) * 1.0
      score = np.round(rng.random((80, 3)), 1) + 0.01
      arrays = [jax.device_put(x, spread) for x in (score, label, weight)]
      found, expected = whole(*arrays), metrics.of_classes(score, label)(weight)
      for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
      program = program or sums.lower(*arrays).compile().as_text() or ""
  assert "all-reduce" in program
  assert "all-gather" not in program


def test_intervals_cover_the_truth():
  """Of 200 intervals of accuracy, with correlated examples within clusters, about 90% contain the truth."""
  inside = 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), 3)
    right = np.repeat(rng.random(60) < 0.7, 3)
    of = lambda w, right=right: {"accuracy": metrics.mean(right * 1.0, w)}
    low, high = metrics.bootstrap(of, clusters, np.ones(180), 200, seed)["accuracy"]
    inside += low <= 0.7 <= high
  assert 165 <= inside <= 193


@pytest.mark.parametrize("measure", OF_MEANS)
def test_clusters_of_documents_equal_their_tokens(measure):
  """Also if tokens or whole documents have zero weight."""
  rng = np.random.default_rng(0)
  values = {name: rng.normal(2.0, 1.0, (30, 8)) for name in ("loss", "accuracy")}
  clusters, weight = np.sort(rng.integers(0, 12, (30, 8)), axis=None).reshape(30, 8), rng.integers(0, 3, (30, 8)) * 1.0
  weight[clusters == 5] = 0
  means, names, whole = metrics.of_clusters(values, clusters, weight)
  assert len(names) == 12
  expected = metrics.bootstrap(measure(values), clusters, weight, 50)
  found = metrics.bootstrap(measure(means), names, whole, 50)
  assert len(expected) == len(measure(values)(weight)) > 0
  assert found == {name: pytest.approx(pair, rel=1e-12) for name, pair in expected.items()}


def test_the_threshold_has_the_lowest_cost_and_is_chosen_on_the_other_half():
  for seed in range(100):
    rng = np.random.default_rng(seed)
    score, yes, weight = np.round(rng.random(30), 1), rng.random(30) < 0.3, rng.integers(1, 3, 30) * 1.0
    best = metrics.threshold(score, yes, weight, (1.0, 5.0))
    least = min(metrics.cost(score, yes, weight, (1.0, 5.0), t) for t in [*np.unique(score), np.inf])
    np.testing.assert_allclose(metrics.cost(score, yes, weight, (1.0, 5.0), best), least)
  # Where nothing can be known the chosen threshold gains nothing on examples that did not choose it.
  rng = np.random.default_rng(0)
  noise = np.mean([
    metrics.cost_of_halves(rng.random(40), rng.random(40) < 0.5, np.ones(40), (1.0, 1.0)) for _ in range(300)
  ])  # fmt: skip
  assert noise > 0.48
  assert metrics.cost_of_halves(np.arange(20) / 20, np.arange(20) >= 10, np.ones(20), (1.0, 1.0)) <= 0.1


def test_translations_are_scored_by_sacrebleu():
  sacrebleu = pytest.importorskip("sacrebleu")
  said, wanted = ["a cat sat on the mat there", "so it goes on"], ["the cat sat on the mat", "so it goes"]
  assert metrics.bleu(said, wanted)["bleu"] == sacrebleu.corpus_bleu(said, [wanted]).score
  assert metrics.bleu(wanted, wanted) == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}
