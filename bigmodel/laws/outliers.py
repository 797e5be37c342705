"""Points whose losses lie far from those of all others, such as runs that diverged.

They are searched for with a quadratic surface in the logs of the scales, which is quick, and are confirmed by a law
that is fitted to the other points, so that a smooth curve that is not a quadratic has no outliers.
"""

from collections.abc import Sequence

import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import fitting
from bigmodel.laws.law import Law

FAR = 8.0  # standard deviations of the other points from their smooth surface
LEAST = 0.15  # in ln loss: smaller deviations do little harm, as fits are robust
GROSS = 1.0  # in ln loss: beyond this a point is an outlier whatever its neighbours are
SHARE = 0.2  # of the points: if more deviate, the law is wrong rather than the points
NEIGHBOURS = 4  # that have to fit while the point does not
FEWEST = 8  # points; with fewer, an outlier looks like a bend of the curve
FEW = 3  # points for each term of the surface: with fewer, the spread of their errors includes that of outliers
ROUNDS = 60  # of removal: with many points several are removed in each


def find(law: Law, columns: Sequence[np.ndarray], loss: np.ndarray) -> np.ndarray:
  """Mask of the points that are outliers; `law` has these columns and confirms them."""
  none = np.zeros(len(loss), bool)
  if len(loss) < FEWEST or law.plain:
    return none
  logs = [np.log(x) for x in columns if np.ptp(x) > 0]
  candidates = _far_from_surface(logs, np.log(loss))
  if not candidates.any():
    return none
  try:
    fitted = fitting.fit(law, [x[~candidates] for x in columns], loss[~candidates])
  except UserError:
    return none  # too few points are left to fit the law
  residual = np.log(loss) - np.log(fitted.predict(*columns))
  center, spread = _spread(residual[~candidates])
  return candidates & _stands_out(logs, residual - center, spread, ~candidates)


def _far_from_surface(logs: Sequence[np.ndarray], y: np.ndarray) -> np.ndarray:
  """Points far from a quadratic surface through the others: the worst are removed, and return if they do fit."""
  basis = _quadratic(logs, len(y))
  if len(y) < basis.shape[1] + 3:
    basis = basis[:, : 1 + len(logs)]
  most = int(SHARE * len(y))
  step = max(1, most // ROUNDS)
  kept = np.ones(len(y), bool)
  for _ in range(0, most, step):
    inner = np.flatnonzero(kept)
    errors, leverage = _errors(basis, y, kept)
    left_out = errors[inner] / np.maximum(1 - leverage[inner], 1e-3)  # the errors of fits without each point
    few = len(inner) < FEW * basis.shape[1]  # then an outlier bends the surface, and with it all other errors
    if np.abs(left_out).max() < (LEAST if few else max(LEAST, FAR / 2 * _spread(left_out)[1])):
      break
    fall = left_out**2 * np.maximum(1 - leverage[inner], 1e-3) if few else np.abs(left_out)  # of the sum of squares
    kept[inner[np.argsort(-fall, kind="stable")[:step]]] = False
  errors, leverage = _errors(basis, y, kept)
  spread = _spread(errors[kept])[1]
  return ~kept & (np.abs(errors) > np.maximum(LEAST, FAR / 2 * spread * np.sqrt(1 + leverage)))


def _quadratic(logs: Sequence[np.ndarray], count: int) -> np.ndarray:
  """The terms [points, terms] of a quadratic in the logs of the scales: 1, those of first and of second order."""
  scaled = [(x - x.mean()) / (x.std() or 1.0) for x in logs]
  second = [scaled[i] * scaled[j] for i in range(len(scaled)) for j in range(i + 1)]
  return np.stack([np.ones(count), *scaled, *second], axis=1)


def _errors(basis: np.ndarray, y: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Errors [points] of least squares through the points in `kept`, and the leverages [points]."""
  inverse = np.linalg.pinv(basis[kept].T @ basis[kept])
  coefficients = inverse @ (basis[kept].T @ y[kept])
  return y - basis @ coefficients, np.sum((basis @ inverse) * basis, axis=1)


def _spread(errors: np.ndarray) -> tuple[float, float]:
  """The median, and a standard deviation that a few outliers do not change."""
  center = float(np.median(errors))
  return center, 1.4826 * float(np.median(np.abs(errors - center)))


def _stands_out(logs: Sequence[np.ndarray], residual: np.ndarray, spread: float, ordinary: np.ndarray) -> np.ndarray:
  """Points whose residuals are far from 0 and from those of their neighbours.

  Curves flatten towards their smallest scales. A loss that is too low there, with no `ordinary` point at smaller
  scales, shows that the law does not hold so far down.
  """
  far = max(LEAST, FAR * spread)
  places = np.stack([x / (np.ptp(x) or 1.0) for x in logs], axis=1) if logs else np.zeros((len(residual), 1))
  found = np.abs(residual) > far
  for i in np.flatnonzero(found & (np.abs(residual) < GROSS)):
    distance = np.sum((places - places[i]) ** 2, axis=1)
    distance[i] = np.inf
    near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
    flattens = residual[i] < 0 and not (ordinary & (places <= places[i]).all(axis=1)).any()
    found[i] = abs(residual[i] - np.median(residual[near])) > far and not flattens
  return found
