"""Evaluation on held-out documents: loss, its standard error over documents, bits per byte."""

import math
from typing import Any

import numpy as np

from bigmodel import tasks
from bigmodel.config import Config
from bigmodel.data.pipeline import EvalRows
from bigmodel.train.step import Program


def evaluate(program: Program, params: Any, config: Config, rows: EvalRows) -> dict[str, float]:
  """`loss` a token or example, its `loss_stderr` over documents or examples, `bits_per_byte` of text, metrics."""
  measured = [program.values(params, batch, key) for key, batch in enumerate(rows.batches(config.eval.batch_size))]
  names = measured[0]
  values = {n: np.concatenate([one[n] for one in measured])[: rows.count].astype(np.float64) for n in names}
  weight = values.pop("weight", np.ones_like(values["loss"]))
  mean, stderr = clustered_mean(values["loss"].ravel(), rows.clusters.ravel(), weight.ravel())
  others = {name: float(np.sum(value * weight) / np.sum(weight)) for name, value in values.items()}
  metrics = tasks.build(config).summary(others)
  metrics.pop("loss", None)
  spoken = None if rows.bytes is None else float(np.sum(rows.bytes * weight))
  bits = float(np.sum(values["loss"] * weight)) / math.log(2) / max(spoken, 1) if spoken is not None else math.nan
  return {"loss": mean, "loss_stderr": stderr, "bits_per_byte": bits, **metrics}


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
