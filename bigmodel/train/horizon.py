"""The length of a run in steps and in tokens, and its batch sizes."""

import dataclasses

from bigmodel import data
from bigmodel.config import Config, require
from bigmodel.declarations import LARGEST_WHOLE


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps `first` to `stop` of a run, with batches of `rows`, after `before` rows in earlier phases."""

  rows: int
  first: int
  stop: int
  before: int


def phases(config: Config) -> list[Phase]:
  """The phases of a run's last stage: one for each batch size of its ramp, then the full batch size to its horizon."""
  train, unit, ramp = config.train, data.unit(config), [Phase(0, 0, 0, 0)]
  for text in train.ramp:
    rows, at, until = text.partition("@")
    are_numbers = all(number.isascii() and number.isdigit() and len(number) < 17 for number in (rows, until))
    require(
      bool(at) and are_numbers and 0 < int(rows) <= LARGEST_WHOLE, f"config.train.ramp: {text!r} is not ROWS@TOKENS"
    )
    ramp.append(_next(ramp[-1], int(rows), int(until) / unit))
    require(ramp[-1].stop > ramp[-2].stop, f"config.train.ramp: {text!r} ends before it begins")
  last = _next(ramp[-1], train.batch_size, train.tokens / unit)
  if train.steps or not train.ramp:
    last = dataclasses.replace(last, stop=train.steps or max(1, last.stop))
  require(last.stop > last.first, f"config.train.ramp: the ramp is longer than the run, which has {last.stop} steps")
  return [*ramp[1:], last]


def _next(phase: Phase, rows: int, until: float) -> Phase:
  """The phase after `phase`, which ends when `until` rows have been seen."""
  before = phase.before + (phase.stop - phase.first) * phase.rows
  return Phase(rows, phase.stop, phase.stop + round((until - before) / rows), before)


def own_steps(config: Config) -> int:
  """The number of steps of a run's last stage, whether its horizon is set in steps or in tokens."""
  return phases(config)[-1].stop


def tokens_at(config: Config, step: int) -> int:
  """The tokens (or examples) that a run has seen after `step` steps."""
  if not config.train.ramp:
    return step * batch_tokens(config)
  seen = sum(max(0, min(step, phase.stop) - phase.first) * phase.rows for phase in phases(config))
  return seen * data.unit(config)


def batch_tokens(config: Config) -> int:
  """The tokens of a batch, or its examples if a row is one example."""
  return config.train.batch_size * data.unit(config)
