"""Forecasts the last loss of a run that is under way, for stopping runs of a sweep that cannot become the best.

The run and a reference, which has finished, have the same steps and shape of schedule. In ln loss, the rest of the run
is measured by the sum of three falls, each of which alone would miss some runs:

- its own: what it gained since half of its steps, for each doubling of the steps that is left;
- the reference's: what that gained from this step to its end, with its decay of the learning rate;
- its roughness: the largest second difference of its last evaluations. A high learning rate makes the loss rough, and
  the decay then gains more.

The forecast starts at the lowest of the last evaluations, since a single one of a rough loss may be far too high.
`CENTER` and `SD` are shares of the sum of falls, chosen on twelve sweeps; docs/sweeps.md says how they were tested.
"""

import dataclasses

import numpy as np
from scipy import special

CENTER = 0.35
SD = 0.25
FREEDOM = 10.0  # degrees of freedom of Student's t
FLOOR = 0.01  # least sum of falls, in ln loss
ROUGH = 5  # last evaluations of which the roughness is taken
LOWEST = 3  # last evaluations at whose lowest the forecast starts
LEAST = 1e-12  # measures such as an error rate may be 0


@dataclasses.dataclass(frozen=True)
class LastLoss:
  """A forecast of the last loss: its median, and its standard deviation in ln loss."""

  predicted: float
  sd: float

  def low(self, level: float) -> float:
    """The loss above which the last one lies with this probability."""
    return self.predicted * float(np.exp(-special.stdtrit(FREEDOM, level) * self.sd))


def forecast(steps: np.ndarray, losses: np.ndarray, reference: np.ndarray) -> LastLoss:
  """The forecast from `losses` [K] at the first K of all evaluated `steps` [M], which increase.

  `reference` [M] are the losses of a finished run at all of the steps.
  """
  y, other = (np.log(np.maximum(values, LEAST)) for values in (losses, reference))
  now = len(y) - 1
  halfway = float(np.interp(steps[now] / 2, steps[: now + 1], y))
  own = max(0.0, halfway - float(y[now])) * float(np.log2(steps[-1] / steps[now]))
  rest = max(0.0, float(other[now] - other[-1]))
  bends = np.abs(np.diff(y[-ROUGH:], 2))
  total = own + rest + float(bends.max(initial=0.0)) + FLOOR
  return LastLoss(float(np.exp(y[-LOWEST:].min() - CENTER * total)), SD * total)
