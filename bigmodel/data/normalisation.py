"""Means and deviations of the training examples, by which inputs are normalised."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from bigmodel.data.prepared import chunks

Statistics = tuple[np.ndarray, np.ndarray]  # mean and deviation, per feature or channel or for all values


def statistics(inputs: np.ndarray, train: np.ndarray, normalise: str) -> Statistics:
  """Mean and deviation over the training examples (and pixels), by `data.normalise`; `train` are their places.

  A feature that is constant keeps its scale.
  """
  if normalise == "none":
    return np.asarray(0, np.float32), np.asarray(1, np.float32)
  if normalise == "unit":
    low, high = value_range(inputs, train)
    return np.asarray(low, np.float32), np.asarray((high - low) or 1, np.float32)
  axes = tuple(range(inputs.ndim - 1)) or 0
  values = len(train) * math.prod(inputs.shape[1:-1])

  def total(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.sum([function(part.astype(np.float64)).sum(axis=axes) for part in _parts(inputs, train)], axis=0)

  mean = total(lambda part: part) / values
  # The data are read a second time, because a sum of squares loses the digits of values that lie far from 0.
  deviation = np.sqrt(total(lambda part: np.square(part - mean)) / values)
  small = deviation <= 1e-12 * np.abs(mean)
  return mean.astype(np.float32), np.where(small, 1, deviation).astype(np.float32)


def value_range(inputs: np.ndarray, train: np.ndarray) -> tuple[float, float]:
  """The least and the largest value of the training examples."""
  ends = [(float(part.min()), float(part.max())) for part in _parts(inputs, train)]
  return min(low for low, _ in ends), max(high for _, high in ends)


def black_and_white(
  pixels: np.ndarray, train: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> dict[str, tuple[float, ...]]:
  """The values of black and white in each channel after normalisation, by name."""
  low, high = (0, 255) if pixels.dtype == np.uint8 else value_range(pixels, train)

  def normalised(value: float) -> tuple[float, ...]:
    return tuple(np.broadcast_to((value - mean) / deviation, pixels.shape[-1:]).astype(float).tolist())

  return {"black": normalised(low), "white": normalised(high)}


def _parts(inputs: np.ndarray, train: np.ndarray) -> Iterator[np.ndarray]:
  return (inputs[train[rows]] for rows in chunks(len(train), math.prod(inputs.shape[1:])))
