"""Weighted metrics of predictions, for NumPy or JAX arrays.

All metrics are sums over examples, except those that rank examples (ROC AUC, average precision):
under `jit`, with examples sharded over devices, only these gather the scores. Means over classes
leave out classes with neither examples nor predictions; a class needs positive and negative
examples for a ROC AUC. A ratio whose denominator is 0 is 0, as in scikit-learn.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from bigmodel.errors import UserError

Array = Any  # a NumPy or JAX array; they share methods, but no common type declares these
Metric = Callable[[Array], dict[str, Array]]  # weights of examples -> metrics

T = TypeVar("T")

AVERAGES = ("macro", "micro", "weighted")
DETAILS = tuple(
  f"{name}_{a}" for name in ("precision", "recall", "f1") for a in AVERAGES if (name, a) != ("f1", "macro")
)


LARGER = ("accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "r2", "coverage", "bleu", "chrf")  # is better


def as_loss(name: str, value: float) -> float:
  """Returns a metric as a quantity that falls when a model improves: 1 - value if larger is better."""
  return 1 - value if name.startswith(LARGER) else value


def main(metrics: Mapping[str, T]) -> dict[str, T]:
  """Returns the main metrics, for log lines and tables."""
  return {name: value for name, value in metrics.items() if name not in DETAILS}


def _space(x: Array) -> ModuleType:
  return x.__array_namespace__()


def _ratio(above: Array, below: Array) -> Array:
  """Returns above / below, and 0 where below is 0."""
  xp = _space(below)
  return xp.where(below != 0, above / xp.where(below != 0, below, 1), 0)


def mean(x_N: Array, w_N: Array) -> Array:
  return (x_N * w_N).sum() / w_N.sum()


def regression(prediction_N: Array, target_N: Array, w_N: Array) -> dict[str, Array]:
  """Returns the mean squared and absolute error, and the share of the variance that is explained."""
  squared = mean((prediction_N - target_N) ** 2, w_N)
  variance = mean((target_N - mean(target_N, w_N)) ** 2, w_N)
  return {"mse": squared, "mae": mean(abs(prediction_N - target_N), w_N), "r2": r2(squared, variance)}


def r2(squared: Array, variance: Array) -> Array:
  """Returns 1 - squared / variance; if all targets are equal, 1 for perfect predictions and otherwise 0."""
  xp = _space(variance)
  return xp.where(variance > 0, 1 - _ratio(squared, variance), xp.where(squared > 0, 0.0, 1.0))


def pinball(prediction_N: Array, target_N: Array, w_N: Array, quantile: float) -> Array:
  """Returns the pinball loss, which the quantile minimises (Koenker and Bassett 1978)."""
  xp = _space(target_N)
  above = target_N - prediction_N
  return mean(xp.where(above >= 0, quantile * above, (quantile - 1) * above), w_N)


def confusion(label_N: Array, predicted_N: Array, w_N: Array, classes: int) -> Array:
  """Returns the total weight of examples of class i that were predicted as class j, [classes, classes]."""
  xp = _space(w_N)
  label_NxC, predicted_NxC = (
    (x_N[:, None] == xp.arange(classes)[None]).astype(w_N.dtype) for x_N in (label_N, predicted_N)
  )
  return (label_NxC * w_N[:, None]).T @ predicted_NxC


def by_class(matrix_CxC: Array) -> dict[str, Array]:
  """Returns precision, recall and F1 of each class, from a confusion matrix."""
  hit_C, have_C, named_C = matrix_CxC.diagonal(), matrix_CxC.sum(axis=1), matrix_CxC.sum(axis=0)
  return {
    "precision": _ratio(hit_C, named_C),
    "recall": _ratio(hit_C, have_C),
    "f1": _ratio(2 * hit_C, have_C + named_C),
  }


def decisions(matrix_CxC: Array) -> dict[str, Array]:
  """Returns accuracy, and precision, recall and F1 as means over classes (macro, micro, weighted by examples)."""
  xp = _space(matrix_CxC)
  total, have_C = matrix_CxC.sum(), matrix_CxC.sum(axis=1)
  there_C = ((have_C + matrix_CxC.sum(axis=0)) > 0).astype(matrix_CxC.dtype)
  accuracy = _ratio(xp.trace(matrix_CxC), total)
  averages = {"accuracy": accuracy}
  for name, each_C in by_class(matrix_CxC).items():
    averages[f"{name}_macro"] = _ratio((each_C * there_C).sum(), there_C.sum())
    averages[f"{name}_micro"] = accuracy  # every example has one label and gets one
    averages[f"{name}_weighted"] = _ratio((each_C * have_C).sum(), total)
  return averages


class Ranks:
  """Examples sorted by score, once for all sets of weights."""

  def __init__(self, score_N: Array, positive_N: Array):
    xp = _space(score_N)
    self.order_N = xp.argsort(score_N)
    self.positive_N = positive_N[self.order_N]
    sorted_N = score_N[self.order_N]
    self.first_N, self.last_N = (xp.searchsorted(sorted_N, sorted_N, side=side) for side in ("left", "right"))

  def _sums(self, w_N: Array) -> tuple[Array, Array, Array]:
    """Returns weights of positive examples, their sums below each place, and the same sums of negative examples."""
    xp = _space(w_N)
    w_N = w_N[self.order_N]
    yes_N = xp.where(self.positive_N, w_N, 0)
    below, below_no = (xp.concatenate([xp.zeros(1, w_N.dtype), xp.cumsum(x_N)]) for x_N in (yes_N, w_N - yes_N))
    return yes_N, below, below_no

  def roc_auc(self, w_N: Array) -> Array:
    xp = _space(w_N)
    yes_N, hits, misses = self._sums(w_N)
    pairs = hits[-1] * misses[-1]
    won = (yes_N * (misses[self.first_N] + misses[self.last_N]) / 2).sum()
    return xp.where(pairs > 0, _ratio(won, pairs), xp.nan)

  def average_precision(self, w_N: Array) -> Array:
    yes_N, hits, misses = self._sums(w_N)
    above_N = (hits[-1] - hits)[self.first_N]
    return _ratio((yes_N * _ratio(above_N, above_N + (misses[-1] - misses)[self.first_N])).sum(), hits[-1])


def roc_auc(score_N: Array, positive_N: Array, w_N: Array) -> Array:
  """Returns the chance that a positive example scores above a negative one, ties counting half; NaN if undefined."""
  return Ranks(score_N, positive_N).roc_auc(w_N)


def average_precision(score_N: Array, positive_N: Array, w_N: Array) -> Array:
  """Returns the area under the precision-recall step function; 0 if no example is positive."""
  return Ranks(score_N, positive_N).average_precision(w_N)


def ranking(ranks: list[Ranks], w_N: Array) -> dict[str, Array]:
  """Returns ROC AUC and average precision, means over the classes with these one-against-the-rest `ranks`."""
  xp = _space(w_N)
  auc = xp.stack([one.roc_auc(w_N) for one in ranks])
  precise = xp.stack([one.average_precision(w_N) for one in ranks])
  have = xp.stack([xp.where(one.positive_N, w_N[one.order_N], 0).sum() for one in ranks])

  def average(x_C: Array, counts_C: Array) -> Array:
    """Returns the mean over the classes that count."""
    total = xp.where(counts_C, x_C, 0).sum()
    return xp.where(counts_C.any(), _ratio(total, counts_C.sum() * 1.0), xp.nan)

  return {"roc_auc": average(auc, xp.isfinite(auc)), "pr_auc": average(precise, have > 0)}


def reliability(confidence_N: Array, hit_N: Array, w_N: Array, bins: int = 10) -> dict[str, Array]:
  """Returns the weight, mean confidence and accuracy in each of equally wide bins of confidence."""
  xp = _space(w_N)
  edges = xp.linspace(0, 1, bins + 1)[1:-1].astype(confidence_N.dtype)
  place_N = xp.searchsorted(edges, confidence_N, side="left")
  in_NxB = (place_N[:, None] == xp.arange(bins)[None]).astype(w_N.dtype) * w_N[:, None]
  weight_B = in_NxB.sum(axis=0)
  confidence_B, hits_B = (_ratio((in_NxB * x_N[:, None]).sum(axis=0), weight_B) for x_N in (confidence_N, hit_N * 1.0))
  return {"weight": weight_B, "confidence": confidence_B, "hits": hits_B}


def calibration_error(confidence_N: Array, hit_N: Array, w_N: Array, bins: int = 10) -> Array:
  """Returns the expected calibration error: the mean gap of confidence and accuracy over bins (Guo et al. 2017)."""
  curve = reliability(confidence_N, hit_N, w_N, bins)
  return _ratio((curve["weight"] * abs(curve["confidence"] - curve["hits"])).sum(), curve["weight"].sum())


def of_classes(score_NxC: Array, label_N: Array) -> Metric:
  """Returns all metrics of class probabilities [N, C], as a function of the weights."""
  xp, C = _space(score_NxC), score_NxC.shape[1]
  predicted_N, confidence_N = xp.argmax(score_NxC, axis=1), score_NxC.max(axis=1)
  ranks = [Ranks(score_NxC[:, c], label_N == c) for c in ([1] if C == 2 else range(C))]

  def metric(w_N: Array) -> dict[str, Array]:
    return {
      **decisions(confusion(label_N, predicted_N, w_N, C)),
      **ranking(ranks, w_N),
      "calibration_error": calibration_error(confidence_N, predicted_N == label_N, w_N),
    }

  return metric


def cost(score_N: Array, positive_N: Array, w_N: Array, prices: tuple[float, float], threshold: float) -> Array:
  """Returns the mean cost of a threshold; `prices` are those of a false positive and a false negative."""
  xp = _space(w_N)
  called_N = score_N >= threshold
  wrong_N = xp.where(called_N & ~positive_N, prices[0], 0) + xp.where(~called_N & positive_N, prices[1], 0)
  return mean(wrong_N, w_N)


def threshold(score_N: np.ndarray, positive_N: np.ndarray, w_N: np.ndarray, prices: tuple[float, float]) -> float:
  """Returns the threshold of lowest cost, in the middle between two scores (or beyond all scores)."""
  order_N = np.argsort(score_N)
  score_N, yes_N, no_N = score_N[order_N], (w_N * positive_N)[order_N], (w_N * ~positive_N)[order_N]
  below_no, below_yes = (np.concatenate([[0.0], np.cumsum(x_N)]) for x_N in (no_N, yes_N))
  total = prices[0] * (no_N.sum() - below_no) + prices[1] * below_yes
  total[1:-1][score_N[1:] == score_N[:-1]] = np.inf  # a threshold cannot separate equal scores
  place = int(np.argmin(total))
  if place in (0, len(score_N)):
    return -np.inf if place == 0 else np.inf
  return float(score_N[place - 1] + score_N[place]) / 2


def cost_of_halves(score_N: np.ndarray, positive_N: np.ndarray, w_N: np.ndarray, prices: tuple[float, float]) -> float:
  """Returns the mean cost of each half of the examples at the threshold chosen on the other half."""
  total, half_N = 0.0, np.arange(len(score_N)) % 2
  for half in (0, 1):
    here, there = half_N == half, half_N != half
    if not here.any() or not there.any():
      return float("nan")
    chosen = threshold(score_N[there], positive_N[there], w_N[there], prices)
    total += float(cost(score_N[here], positive_N[here], w_N[here], prices, chosen) * w_N[here].sum())
  return total / float(w_N.sum())


def bootstrap(
  metric: Metric, clusters: np.ndarray, w: np.ndarray, resamples: int, seed: int = 0, level: float = 0.9
) -> dict[str, tuple[float, float]]:
  """Returns percentile intervals of `metric` from bootstrap samples of whole clusters, drawn with replacement."""
  names, index = np.unique(clusters, return_inverse=True)
  rng, drawn = np.random.default_rng(seed), []
  for _ in range(resamples if len(names) > 1 else 0):
    times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    again = w * times[index].reshape(w.shape)
    if again.any():
      drawn.append(metric(again))
  tails = [(1 - level) / 2, (1 + level) / 2]
  intervals = {}
  for name in drawn[0] if drawn else ():
    values = np.array([float(one[name]) for one in drawn])
    values = values[np.isfinite(values)]
    if len(values) > 1:
      low, high = np.quantile(values, tails)
      intervals[name] = (float(low), float(high))
  return intervals


def of_clusters(
  values: dict[str, np.ndarray], clusters: np.ndarray, w: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """Returns values, clusters and weights with one row per cluster: its weighted means and its weight.

  As whole clusters are resampled, weighted means of these rows equal the weighted means of all rows.
  """
  names, index = np.unique(clusters.ravel(), return_inverse=True)

  def add(x: np.ndarray) -> np.ndarray:
    return np.bincount(index, weights=x.ravel(), minlength=len(names))

  whole = add(w)
  return {name: add(x * w) / np.where(whole > 0, whole, 1.0) for name, x in values.items()}, names, whole


def bleu(texts: list[str], references: list[str]) -> dict[str, float]:
  """Returns corpus BLEU and chrF by sacrebleu (Post 2018), each from 0 to 100."""
  try:
    import sacrebleu  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("BLEU: sacrebleu is not installed; pip install 'bigmodel[metrics]'") from error
  return {
    "bleu": sacrebleu.corpus_bleu(texts, [references]).score,
    "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
  }
