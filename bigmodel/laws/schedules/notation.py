"""Schedules in one word, as options give them: `cosine:steps=72000,warmup=2000,peak=3e-4,final=0.1`.

The names and their meaning are those of `config.optim.schedule`. `warmup` and `decay` are shares of the steps as there,
or numbers of steps if they are 1 or more; `final` is a share of the peak as there, and `end` is the rate itself.
"""

import dataclasses
import math
from typing import cast

import jax.numpy as jnp
import numpy as np

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.optim import schedules
from bigmodel.optim.traced import Hyperparameters

KEYS = ("steps", "warmup", "peak", "final", "end", "decay")
MOST_STEPS = 10_000_000
FINAL, DECAY = 0.1, 0.2  # the defaults of `config.optim`
LOWEST_FINAL = 1e-3  # smaller shares are taken for rates by mistake


@dataclasses.dataclass(frozen=True)
class Named:
  """A named schedule with its numbers: warm-up and decay in steps, `final` as a share of the peak."""

  name: str
  steps: int
  warmup: int
  peak: float
  final: float = FINAL
  decay: int = 0

  def rates(self) -> np.ndarray:
    """The rate of every step [steps + 1]; that at 0 is 0."""
    h = cast(Hyperparameters, _Numbers(self.warmup, self.decay, self.steps, 0, self.final))
    shares = schedules.factor(self.name, jnp.arange(self.steps), h)
    return np.concatenate([[0.0], self.peak * np.asarray(shares, np.float64)])

  def __str__(self) -> str:
    numbers = f"{self.name}:steps={self.steps},warmup={self.warmup},peak={self.peak:.6g}"
    reads = schedules.SCHEDULES[self.name].reads
    numbers += f",final={self.final:.4g}" if "final" in reads else ""
    return numbers + (f",decay={self.decay}" if "decay" in reads else "")


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """The fields of `Hyperparameters` that schedules read."""

  warmup: int
  decay: int
  steps: int
  first: int
  final: float


def parse(text: str, peak: float, warmup: int, where: str = "--schedule") -> Named:
  """The schedule of a text; `peak` and `warmup` are those of the fitted curves, where the text gives none."""
  name, _, rest = text.partition(":")
  if name not in schedules.SCHEDULES:
    raise UserError(
      f"{where}: {name!r} is no schedule{nearest(name, schedules.SCHEDULES)}; known: {', '.join(schedules.SCHEDULES)},"
      " as in cosine:steps=24000, or a CSV of steps and rates"
    )
  given = {}
  for part in rest.split(",") if rest else ():
    key, equals, value = part.partition("=")
    if key not in KEYS or not equals:
      raise UserError(f"{where}: {part!r} is not KEY=NUMBER{nearest(key, KEYS)}; keys: {', '.join(KEYS)}")
    if key in given:
      raise UserError(f"{where}: {key} is given twice")
    given[key] = _number(key, value, where)
  reads = schedules.SCHEDULES[name].reads
  for key, needed in (("decay", "decay"), ("final", "final"), ("end", "final")):
    if key in given and needed not in reads:
      raise UserError(f"{where}: {name} has no {key}")
  if "steps" not in given:
    raise UserError(f"{where}: {text!r} lacks steps=NUMBER, the length of the run")
  steps = given["steps"]
  if steps != int(steps) or not 1 <= steps <= MOST_STEPS:
    raise UserError(f"{where}: steps={steps:g} is not a whole number from 1 to {MOST_STEPS:,}")
  peak = given.get("peak", peak)
  if peak <= 0:
    raise UserError(f"{where}: peak={peak:g} is not a positive rate")
  rise = _steps("warmup", given["warmup"], int(steps), where) if "warmup" in given else min(warmup, int(steps) - 1)
  share = _steps("decay", given.get("decay", DECAY), int(steps), where) if "decay" in reads else int(steps) - rise
  return Named(name, int(steps), rise, peak, _final(given, peak, where), max(1, share))


def _final(given: dict[str, float], peak: float, where: str) -> float:
  """The rate at the end, as a share of the peak."""
  if "end" in given and "final" in given:
    raise UserError(f"{where}: final (a share of the peak) and end (a rate) say the same; give one")
  if "end" in given:
    if not 0 <= given["end"] <= peak:
      raise UserError(f"{where}: end={given['end']:g} is not a rate from 0 to the peak of {peak:g}")
    return given["end"] / peak
  final = given.get("final", FINAL)
  if not 0 <= final <= 1:
    raise UserError(f"{where}: final={final:g} is not a share of the peak, from 0 to 1; end=RATE gives a rate")
  if 0 < final < LOWEST_FINAL:
    raise UserError(
      f"{where}: final={final:g} is a share of the peak, which would end at {final * peak:.3g}; for the rate"
      f" {final:g} write end={final:g}"
    )
  return final


def _steps(key: str, value: float, steps: int, where: str) -> int:
  """A number of steps, from a share of the run if it is below 1."""
  number = value * steps if value < 1 else value
  if value >= 1 and value != int(value):
    raise UserError(f"{where}: {key}={value:g} is neither a whole number of steps nor a share below 1")
  if not 0 <= number <= steps:
    raise UserError(f"{where}: {key}={value:g} is longer than the run of {steps:,} steps, or negative")
  return round(number)


def _number(key: str, text: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError as error:
    raise UserError(f"{where}: {key}={text!r} is not a number") from error
  if not math.isfinite(value):
    raise UserError(f"{where}: {key}={text} is not a finite number")
  return value
