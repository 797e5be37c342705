"""Sums over the steps of a schedule, as laws of loss curves need them, with few terms for each row.

A law that describes what a fall of the learning rate does to the loss at step t (Tissue et al. 2024, Luo et al. 2025)
sums a function of the step k over every change of the rate up to t. Added up plainly that takes (rows x steps) terms:
4 million for one cosine of 24,000 steps with 171 rows. Here a row takes about a hundred, as follows. Steps are divided
into blocks of 1, 2, 4, ... steps. Far from t, compared with its length, the function is smooth in a block, so its
values at `NODES` steps of the block give the others by polynomial interpolation. The weights of these steps depend on
the schedule alone. Blocks in which the rate is not smooth, such as a sudden drop, are divided down to single steps,
where the sum is exact. Stretches of a constant rate have no changes and take no terms at all.
"""

import dataclasses
import functools

import numpy as np

from bigmodel.laws.schedules import curves

NODES = 4  # steps of a block at which functions are evaluated
LEAF = 4  # steps of the smallest blocks, whose steps are all kept
SMOOTH = 1e-4  # largest error of an interpolated ln rate in a block
RANGE = 1.0  # largest range of ln rate in a block
PROGRESS = 0.7  # power of the rate with which a step counts as progress: see `laws`
TINY = 1e-9  # of the peak: smaller rates count as this, since laws divide by rates


@dataclasses.dataclass(frozen=True)
class Sums:
  """What laws read of a schedule at each row: `total` and `step` [R], and terms of sums over changes [R, K].

  Rates are in units of `peak`, and steps in units of `length`. `progress` is the sum of rates to the power of
  `PROGRESS`. `fall` is the weight of a term: by how much the rate falls (negative: rises) at the steps it stands for,
  after the warm-up. `rate` is the rate after it, `after` the sum of rates from there to the row, and `since` the steps
  from there to the row. Terms that only fill up a row have a fall of 0.
  """

  step: np.ndarray
  total: np.ndarray  # sum of rates up to the row
  progress: np.ndarray
  fall: np.ndarray
  rate: np.ndarray
  after: np.ndarray
  since: np.ndarray

  def __len__(self) -> int:
    return len(self.total)

  def take(self, rows: np.ndarray) -> "Sums":
    """Some of the rows."""
    return Sums(**{name: values[rows] for name, values in self.columns.items()})

  def padded(self, rows: int, terms: int) -> "Sums":
    """As many rows, the last of them repeated, and as many terms, whose falls are 0."""
    return self.take(np.minimum(np.arange(rows), len(self) - 1)).with_terms(terms)

  def with_terms(self, terms: int) -> "Sums":
    """With terms added to each row, whose falls are 0."""
    more = ((0, 0), (0, terms - self.fall.shape[1]))
    filled = {
      name: np.pad(values, more, constant_values=0.0 if name == "fall" else 1.0)
      for name, values in self.columns.items()
      if values.ndim == 2
    }
    return dataclasses.replace(self, **filled)

  @property
  def columns(self) -> dict[str, np.ndarray]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def sums(rates: np.ndarray, steps: np.ndarray, peak: float, length: float, with_rise: bool = False) -> Sums:
  """The sums at `steps` [R] of a schedule whose rate at each step from 0 is `rates`.

  The rate is not negative. The sum at a step includes its rate. The rise of the warm-up is no term, because curves do
  not show its effect, which a law would extrapolate. Published parameters need it as a negative fall (`with_rise`).
  """
  scaled = np.asarray(rates, np.float64) / peak
  steps = np.asarray(steps, np.int64)
  cumulated = np.cumsum(scaled)
  falls = -np.diff(scaled, prepend=scaled[0])
  if not with_rise:
    first = int(np.argmax(scaled > 0))
    falls[: first + curves.rise(scaled[first:]) + 1] = 0.0
  rows, places, weights = _terms(falls, np.log(np.maximum(scaled, TINY)), steps)
  before = cumulated[places] - scaled[places]
  row_of = steps[rows]
  padded = _padded(
    rows,
    len(steps),
    {
      "fall": weights,
      "rate": np.maximum(scaled[places], TINY),
      "after": np.maximum(cumulated[row_of] - before, 0.0) / length,
      "since": (row_of - places + 1) / length,
    },
  )
  progress = np.cumsum(scaled**PROGRESS)[steps] / length
  return Sums(step=steps / length, total=cumulated[steps] / length, progress=progress, **padded)


def stack(parts: list[Sums]) -> Sums:
  """The rows of several schedules in one."""
  width = max(part.fall.shape[1] for part in parts)
  filled = [part.with_terms(width).columns for part in parts]
  return Sums(**{name: np.concatenate([part[name] for part in filled]) for name in filled[0]})


def _terms(falls: np.ndarray, log_rates: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Terms of the sums at every row: `(row, step, weight)` of each, sorted by row."""
  size = max(LEAF, 1 << int(np.ceil(np.log2(len(falls)))))
  falls = np.pad(falls, (0, size - len(falls)))
  log_rates = np.pad(log_rates, (0, size - len(log_rates)), mode="edge")
  rows, blocks = np.arange(len(steps)), np.zeros(len(steps), np.int64)
  found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
  while size > LEAF:
    changes = np.any(falls.reshape(-1, size) != 0, axis=1)
    keep = changes[blocks] & (blocks * size <= steps[rows])
    rows, blocks = rows[keep], blocks[keep]
    weights, smooth = _weights(falls.reshape(-1, size), log_rates.reshape(-1, size))
    distance = steps[rows] - (blocks + 1) * size + 1  # from the end of the block
    far = smooth[blocks] & (distance >= size)
    nodes = blocks[far, None] * size + _nodes(size)
    found.append((np.repeat(rows[far], NODES), nodes.ravel(), weights[blocks[far]].ravel()))
    rows, blocks = np.repeat(rows[~far], 2), (2 * blocks[~far, None] + np.arange(2)).ravel()
    size //= 2
  places = blocks[:, None] * LEAF + np.arange(LEAF)
  rows, places = np.repeat(rows, LEAF), places.ravel()
  keep = (places <= steps[rows]) & (falls[places] != 0)
  found.append((rows[keep], places[keep], falls[places[keep]]))
  rows, places, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
  order = np.argsort(rows, kind="stable")
  return rows[order], places[order], weights[order]


def _weights(falls: np.ndarray, log_rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The weights of the nodes of each block [blocks, NODES], and whether the rate is smooth in it [blocks]."""
  size = falls.shape[1]
  basis = _basis(size)
  error = np.abs(log_rates[:, _nodes(size)] @ basis - log_rates).max(axis=1)
  return falls @ basis.T, (error <= SMOOTH) & (np.ptp(log_rates, axis=1) <= RANGE)


@functools.cache
def _nodes(size: int) -> np.ndarray:
  """Steps of a block of this size near Chebyshev's nodes."""
  angles = (2 * np.arange(NODES) + 1) * np.pi / (2 * NODES)
  return np.unique(np.round((size - 1) * (1 - np.cos(angles)) / 2).astype(np.int64))


@functools.cache
def _basis(size: int) -> np.ndarray:
  """Lagrange's polynomials of the nodes at every step of a block [NODES, size]."""
  nodes, steps = _nodes(size).astype(np.float64), np.arange(size, dtype=np.float64)
  basis = np.ones((len(nodes), size))
  for j, node in enumerate(nodes):
    for other in np.delete(nodes, j):
      basis[j] *= (steps - other) / (node - other)
  return basis


def _padded(rows: np.ndarray, count: int, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Values of terms [terms], sorted by row, as arrays [R, K]; terms that fill up a row have a fall of 0."""
  lengths = np.bincount(rows, minlength=count)
  width = max(1, int(lengths.max(initial=0)))
  place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  padded = {}
  for name, each in values.items():
    array = np.full((count, width), 0.0 if name == "fall" else 1.0)
    array[rows, place] = each
    padded[name] = array
  return padded
