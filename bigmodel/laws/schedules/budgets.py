"""Budgets of tokens or compute as numbers of steps."""

import dataclasses

import numpy as np

from bigmodel.errors import UserError

SAME = 0.02  # relative difference between rows up to which the tokens of a step count as constant


@dataclasses.dataclass(frozen=True)
class PerStep:
  """The tokens and the FLOPs of a step; None where they are unknown."""

  tokens: float | None = None
  flops: float | None = None


UNKNOWN = PerStep()


def ratio(what: str, sums: np.ndarray, steps: np.ndarray) -> float:
  """The constant share of a step in sums up to these steps [R]; `what` begins the message.

  Raises `UserError` if the shares of the rows differ, as they do where the batch size changes.
  """
  each = sums / steps
  if np.ptp(each) > SAME * np.median(each):
    raise UserError(
      f"{what} per step range from {each.min():.4g} to {each.max():.4g}, so a budget is not a number of steps: the"
      " column is the sum up to each row, and all curves have one batch size and one model; give --steps"
    )
  return float(np.median(each))


def steps(option: str, budget: float, per_step: float | None, missing: str) -> int:
  """The most steps that a budget pays for; `option` names it in messages.

  Raises `UserError`, with what is `missing`, if the share of a step is unknown, and for a budget below one step.
  """
  if per_step is None:
    raise UserError(f"{option}: {missing}")
  count = int(budget / per_step * (1 + 1e-9))
  if count < 1:
    raise UserError(f"{option}: {budget:.4g} is less than the {per_step:.4g} of one step")
  return count
