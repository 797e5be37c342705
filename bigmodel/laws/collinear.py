"""Runs whose sizes and data lie on a line, such as D = 20 N: they show the loss along that line only.

A law of N and D needs runs on both sides of it. Without them, the split of the loss between model and data follows from
the form of the law and not from the runs, and so do the best size for a budget and forecasts off the line.
"""

import dataclasses
import math

import numpy as np

from bigmodel.laws.points import Points

THIN = 0.1  # root mean square distance of the runs from the line in (ln N, ln D), up to which they are collinear
NOTED = 1.25  # times as many tokens, or as few, as the line has at a size, from which on a place is off the line
FEWEST = 3  # runs: two always lie on a line


@dataclasses.dataclass(frozen=True)
class Line:
  """ln D = `intercept` + `slope` ln N."""

  slope: float
  intercept: float

  def tokens(self, N: float) -> float:
    """D on the line at N; infinite where it is too large for a number of 64 bits."""
    log_d = self.intercept + self.slope * math.log(N)
    return math.exp(log_d) if log_d < 700 else math.inf

  def __str__(self) -> str:
    if abs(self.slope - 1) < 0.01:
      return f"D = {math.exp(self.intercept):.3g} N"
    if abs(self.slope + 1) < 0.01:
      return f"N D = {math.exp(self.intercept):.3g}"
    return f"D = {math.exp(self.intercept):.3g} N^{self.slope:.2f}"


def find(points: Points) -> Line | None:
  """The line near which all runs lie in (ln N, ln D); None if they do not, or if N or D is the same in all."""
  log_n, log_d = np.log(points.N), np.log(points.D)
  if len(points) < FEWEST or np.ptp(log_n) < 1e-9 or np.ptp(log_d) < 1e-9:
    return None
  center = np.array([log_n.mean(), log_d.mean()])
  _, sizes, directions = np.linalg.svd(np.stack([log_n, log_d], axis=1) - center)
  if sizes[1] / math.sqrt(len(points)) > THIN or sizes[1] > THIN * sizes[0]:
    return None
  along_n, along_d = directions[0]
  if abs(along_n) < 1e-3 or abs(along_d) < 1e-3:
    return None
  slope = float(along_d / along_n)
  return Line(slope, float(center[1] - slope * center[0]))


def of_runs(points: Points) -> list[str]:
  """A note on runs that lie on a line."""
  line = find(points)
  if line is None:
    return []
  return [
    f"all {len(points)} runs lie close to the line {line}, so they cannot tell the effect of N from that of D: the best"
    " size for a budget and forecasts off this line follow from the form of the law alone; add runs with fewer and with"
    " more tokens for their size"
  ]


def off_line(asked: str, N: float, D: float, points: Points) -> list[str]:
  """A note on a place that lies off the line of the runs: how many times more or fewer tokens it has."""
  line = find(points)
  if line is None:
    return []
  with np.errstate(over="ignore"):
    times = D / max(line.tokens(N), 1e-300)
  if 1 / NOTED <= times <= NOTED:
    return []
  amount = f"{times:.3g} times the tokens" if times > 1 else f"{1 / max(times, 1e-300):.3g} times fewer tokens"
  than = "of" if times > 1 else "than"
  return [
    f"{asked} is off the line of the runs ({line}): with N = {N:.3g} and D = {D:.3g} it has {amount} {than} a run of"
    " that size on the line, and no run shows what that does to the loss"
  ]
