"""Loss curves with their schedules: the rate of each step, from the rows that were logged.

`rates[t]` is the learning rate of step t, counted from 1; `rates[0]` is 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bigmodel.errors import UserError

EARLY = 0.05  # of the shortest curve: losses of earlier steps are not described by power laws and are left out
MOST = 200  # rows of a curve that are fitted; of longer ones every second, third, ... row
GAP = 0.05  # of a curve's steps: a longer stretch without rows, in which the rate changes, hides the schedule
CHANGE = 0.1  # relative change of the rate in such a stretch


@dataclasses.dataclass(frozen=True)
class Curve:
  """A run's losses [R] at `steps` [R], and the learning rate of every step [steps + 1].

  `first_row` is the first step whose rate was logged. The losses up to the step `shared` are also those of other
  curves, such as the branches of a trunk, which begin after it.
  """

  name: str
  steps: np.ndarray
  loss: np.ndarray
  rates: np.ndarray
  first_row: int = 1
  shared: int = 0

  @property
  def warmup(self) -> int:
    """The last step of the rise that the schedule begins with."""
    return rise(self.rates)


def rise(rates: np.ndarray) -> int:
  """The step after which the rate first does not rise."""
  still = np.flatnonzero(np.diff(rates) <= 0)
  return int(still[0]) if len(still) else len(rates) - 1


def schedule(steps: np.ndarray, rates: np.ndarray, warmup: int | None = None) -> np.ndarray:
  """The rate of every step up to the last, from the rates [R] at some `steps` [R], which increase.

  Between two rows the rate is interpolated. Where it is constant before and after, it drops at the second row. Before
  the first row it rises linearly over `warmup` steps (by default up to that row) and is then constant.
  """
  last = int(steps[-1])
  filled = np.interp(np.arange(last + 1), steps, rates)
  for i in range(1, len(steps) - 1):
    same_after = i + 2 >= len(steps) or rates[i + 1] == rates[i + 2]
    if rates[i] == rates[i - 1] and rates[i + 1] != rates[i] and same_after:
      filled[int(steps[i]) : int(steps[i + 1])] = rates[i]
  first = int(steps[0])
  if first > 0:
    length = first if warmup is None else max(1, warmup)
    filled[:first] = rates[0] * np.minimum(np.arange(first) / min(length, first), 1.0)
  filled[0] = 0.0
  return filled


def check_gaps(where: str, steps: np.ndarray, rates: np.ndarray) -> None:
  """Raises `UserError`, whose message begins with `where`, if the schedule between two rows cannot be known."""
  distances = np.diff(steps)
  if not len(distances):
    return
  for i in np.flatnonzero(distances > max(GAP * steps[-1], 5 * np.median(distances))):
    low, high = sorted((rates[i], rates[i + 1]))
    if high - low > CHANGE * high:
      raise UserError(
        f"{where}: no rows between steps {steps[i]:,} and {steps[i + 1]:,}, where the learning rate goes from"
        f" {rates[i]:.4g} to {rates[i + 1]:.4g}; add rows with the rates between (their losses may be empty)"
      )


def early(curves: Sequence[Curve]) -> float:
  """The step before which losses are not fitted."""
  return EARLY * min(len(curve.rates) - 1 for curve in curves)


def same_schedule(first: Curve, second: Curve) -> bool:
  """Whether two curves have the same rates at the steps that both have."""
  count = min(len(first.rates), len(second.rates))
  return bool(np.allclose(first.rates[:count], second.rates[:count], rtol=0.01, atol=0.01 * first.rates.max()))


def fitted_part(curves: Sequence[Curve]) -> list[Curve]:
  """The rows that laws are fitted to: after the warm-up and the first steps, and not too many of each curve.

  Raises `UserError` for a curve without such rows.
  """
  parts = []
  for curve in curves:
    if curve.warmup >= curve.steps[-1]:
      raise UserError(
        f"curve {curve.name}: its learning rate rises up to the last of its {len(curve.steps)} losses, at step"
        f" {curve.steps[-1]:,}; laws of the schedule need losses after the warm-up"
      )
    rows = np.flatnonzero((curve.steps >= curve.warmup) & (curve.steps >= early(curves)) & (curve.steps > 0))
    if not len(rows):
      raise UserError(
        f"curve {curve.name}: none of its {len(curve.steps)} losses lies after the first steps, which are not fitted"
        f" (up to step {max(curve.warmup, early(curves)):,.0f})"
      )
    rows = rows[:: -(-len(rows) // MOST)]
    parts.append(dataclasses.replace(curve, steps=curve.steps[rows], loss=curve.loss[rows]))
  return parts
