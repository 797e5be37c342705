"""Evaluation on held-out documents: loss, its standard error over documents, bits per byte."""

import math
from typing import Any

import numpy as np

from bigmodel.config import Config
from bigmodel.data.pipeline import EvalRows
from bigmodel.train.step import Program


def evaluate(program: Program, params: Any, config: Config, rows: EvalRows) -> dict[str, float]:
  """`loss` in nats per token, `loss_stderr` over documents, `bits_per_byte`, `documents`."""
  size = config.eval.batch_size
  count = len(rows.rows)
  padded = np.concatenate([rows.rows, np.repeat(rows.rows[-1:], -count % size, axis=0)])
  losses = [program.losses(params, padded[i : i + size]) for i in range(0, len(padded), size)]
  losses_RxT = np.concatenate(losses)[:count].astype(np.float64)
  mean, stderr = clustered_mean(losses_RxT.ravel(), rows.documents.ravel())
  return {
    "loss": mean,
    "loss_stderr": stderr,
    "bits_per_byte": float(losses_RxT.sum()) / math.log(2) / max(rows.bytes, 1),
    "documents": float(len(np.unique(rows.documents))),
  }


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
  """The mean of `values` and its standard error when whole clusters are the sample.

  Linearised variance of a ratio (Cochran 1977, equation 6.13); NaN with one cluster.
  """
  _, index = np.unique(clusters, return_inverse=True)
  sums, sizes = np.bincount(index, weights=values), np.bincount(index)
  mean = sums.sum() / sizes.sum()
  n = len(sizes)
  if n < 2:
    return float(mean), math.nan
  variance = n / (n - 1) * np.sum((sums - mean * sizes) ** 2) / sizes.sum() ** 2
  return float(mean), float(math.sqrt(variance))
