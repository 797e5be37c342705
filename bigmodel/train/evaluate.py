"""Evaluation on held-out documents or examples: loss, its standard error, metrics with intervals."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from bigmodel import tasks
from bigmodel.config import Config
from bigmodel.data.pipeline import EvalRows
from bigmodel.tasks.metrics import bootstrap, of_clusters
from bigmodel.tasks.task import OF_MEANS
from bigmodel.train.programs import Program
from bigmodel.train.programs.protocol import BatchValues
from bigmodel.types import Params

Z90 = 1.645  # half the width of a 90% interval, in standard errors


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The loss per token or example, its standard error over documents or examples, and metrics with 90% intervals.

  Bits per byte are the loss of all evaluated tokens, including separators, over the UTF-8 bytes of the text that these
  tokens stand for, as it was before the tokenizer changed anything in it. They compare models with different
  tokenizers. A tokenizer that drops what is hard to predict (unknown words, upper case) makes them too small.
  """

  loss: float
  loss_stderr: float
  bits_per_byte: float  # NaN where there is no text
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  details: Mapping[str, Sequence[Mapping[str, object]]]  # tables by name, such as a confusion matrix


NOTHING = Evaluation(math.nan, math.nan, math.nan, {}, {}, {})  # the evaluation of a run that diverged


def evaluate(program: Program, params: Params, config: Config, rows: EvalRows) -> Evaluation:
  """The evaluation of one run's parameters on held-out rows."""
  batches = enumerate(rows.batches(config.eval.batch_size))
  return judge(config, rows, [program.values(params, batch, key) for key, batch in batches])


def measure(
  program: Program, params: Sequence[Params], config: Config, rows: EvalRows, beat: Callable[[], None]
) -> list[list[BatchValues]]:
  """The values of all batches for each of up to `program.at_once` members; `beat` is called after each batch."""
  if not params:
    return []
  evaluate_batch, measured = program.evaluator(params), [[] for _ in params]
  for key, batch in enumerate(rows.batches(config.eval.batch_size)):
    for values_of_member, values in zip(measured, evaluate_batch(batch, key), strict=True):
      values_of_member.append(values)
    beat()
  return measured


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The loss and the metrics of held-out rows, without intervals, which would take most of the time."""

  loss: float
  metrics: dict[str, float]


def held_out(config: Config, rows: EvalRows, measured: Sequence[BatchValues]) -> HeldOut:
  """Computes the loss and the metrics from the values of all batches."""
  values, weight = _joined(rows, measured)
  metrics = _finite(tasks.build(config).measure(values)(weight))
  parts = {name: part for name, (part, _) in _losses_of_parts(rows, values["loss"], weight).items()}
  return HeldOut(float(np.sum(values["loss"] * weight) / np.sum(weight)), metrics | parts)


def _finite(metrics: Mapping[str, ArrayLike]) -> dict[str, float]:
  numbers = {name: float(np.asarray(value)) for name, value in metrics.items()}
  return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _losses_of_parts(rows: EvalRows, loss: np.ndarray, weight: np.ndarray) -> dict[str, tuple[float, float]]:
  """`loss_PART` of each part of a mixture that was evaluated, with its standard error."""
  clusters, losses = np.broadcast_to(rows.clusters, loss.shape), {}
  for name, mask in rows.parts.items():
    weight_in_part = np.where(mask, weight, 0)
    if weight_in_part.any():
      losses[f"loss_{name}"] = clustered_mean(loss.ravel(), clusters.ravel(), weight_in_part.ravel())
  return losses


def _joined(rows: EvalRows, measured: Sequence[BatchValues]) -> tuple[BatchValues, np.ndarray]:
  """Joins the values of all batches by name; returns them and the weight of each token or example."""
  values = {
    name: np.concatenate([batch[name] for batch in measured])[: rows.count].astype(np.float64) for name in measured[0]
  }
  weight = values.pop("weight", np.ones_like(values["loss"]))
  return values, weight


def judge(config: Config, rows: EvalRows, measured: Sequence[BatchValues]) -> Evaluation:
  """Computes an evaluation, with intervals, from the values of all batches."""
  values, weight = _joined(rows, measured)
  loss, clusters = values["loss"], np.broadcast_to(rows.clusters, values["loss"].shape)
  mean, stderr = clustered_mean(loss.ravel(), clusters.ravel(), weight.ravel())
  bits = math.nan
  if rows.bytes is not None:
    bits = float(np.sum(loss * weight)) / math.log(2) / max(float(np.sum(rows.bytes * weight)), 1)
  task = tasks.build(config)
  metric = task.measure(values)
  metrics = _finite(metric(weight))
  resampled = functools.partial(bootstrap, metric, clusters, weight)
  if task.measure in OF_MEANS:  # each resample then needs one number per document in place of its tokens
    means, documents, document_weights = of_clusters(values, clusters, weight)
    resampled = functools.partial(bootstrap, task.measure(means), documents, document_weights)
  intervals = resampled(config.eval.resamples) if metrics else {}
  intervals = {name: interval for name, interval in intervals.items() if name in metrics}
  for name, (part, error) in _losses_of_parts(rows, loss, weight).items():
    metrics[name] = part
    if math.isfinite(error):
      intervals[name] = (part - Z90 * error, part + Z90 * error)
  return Evaluation(mean, stderr, bits, metrics, intervals, task.details(values))


def clustered_mean(values: np.ndarray, clusters: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
  """The weighted mean of `values` and its standard error when whole clusters are the sample.

  Linearised variance of a ratio (Cochran 1977, equation 6.13); NaN with one cluster.
  """
  _, index = np.unique(clusters[weights > 0], return_inverse=True)
  values, weights = values[weights > 0], weights[weights > 0]
  sums, sizes = np.bincount(index, weights=values * weights), np.bincount(index, weights=weights)
  mean = sums.sum() / sizes.sum()
  n = len(sizes)
  if n < 2:
    return float(mean), math.nan
  variance = n / (n - 1) * np.sum((sums - mean * sizes) ** 2) / sizes.sum() ** 2
  return float(mean), float(math.sqrt(variance))
