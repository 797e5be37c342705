"""Evaluation on held-out documents or examples: loss, its standard error, metrics with intervals."""

import dataclasses
import math
from typing import Any

import numpy as np

from bigmodel import tasks
from bigmodel.config import Config
from bigmodel.data.pipeline import EvalRows
from bigmodel.tasks.metrics import bootstrap
from bigmodel.train.step import Program

Z90 = 1.645  # standard errors


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The loss a token or example, its standard error over documents or examples, and 90% intervals of the metrics."""

  loss: float
  loss_stderr: float
  bits_per_byte: float  # NaN where there is no text
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  details: dict[str, list[dict[str, Any]]]  # tables, such as a confusion matrix


def evaluate(program: Program, params: Any, config: Config, rows: EvalRows) -> Evaluation:
  values, weight = predict(program, params, config, rows)
  loss, clusters = values["loss"], np.broadcast_to(rows.clusters, values["loss"].shape)
  mean, stderr = clustered_mean(loss.ravel(), clusters.ravel(), weight.ravel())
  bits = math.nan
  if rows.bytes is not None:
    bits = float(np.sum(loss * weight)) / math.log(2) / max(float(np.sum(rows.bytes * weight)), 1)
  task = tasks.build(config)
  measure = task.measure(values)
  metrics = {name: float(value) for name, value in measure(weight).items()}
  metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
  intervals = bootstrap(measure, clusters, weight, config.eval.resamples) if metrics else {}
  intervals = {name: pair for name, pair in intervals.items() if name in metrics}
  for name, mask in rows.parts.items():
    own = np.where(mask, weight, 0)
    if own.any():
      part, error = clustered_mean(loss.ravel(), clusters.ravel(), own.ravel())
      metrics[f"loss_{name}"] = part
      if math.isfinite(error):
        intervals[f"loss_{name}"] = (part - Z90 * error, part + Z90 * error)
  return Evaluation(mean, stderr, bits, metrics, intervals, task.details(values))


def predict(program: Program, params: Any, config: Config, rows: EvalRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """The values of all held-out rows, and their weights."""
  measured = [program.values(params, batch, key) for key, batch in enumerate(rows.batches(config.eval.batch_size))]
  names = measured[0]
  values = {n: np.concatenate([one[n] for one in measured])[: rows.count].astype(np.float64) for n in names}
  return values, values.pop("weight", np.ones_like(values["loss"]))


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
