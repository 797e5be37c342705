"""How long a run is, in steps and in tokens, and the batch sizes that it goes through."""

import dataclasses

from bigmodel import data
from bigmodel.config import Config, require


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps `first` to `stop` of a run, with batches of `rows`; `before` rows were seen before them."""

  rows: int
  first: int
  stop: int
  before: int


def phases(config: Config) -> list[Phase]:
  """The batches of a run's last stage: those of its ramp, and then its own, to its horizon."""
  train, each, found = config.train, data.unit(config), [Phase(0, 0, 0, 0)]
  for text in train.ramp:
    rows, at, until = text.partition("@")
    require(
      bool(at) and rows.isdigit() and until.isdigit() and int(rows) > 0,
      f"config.train.ramp: {text!r} is not ROWS@TOKENS",
    )
    found.append(_next(found[-1], int(rows), int(until) / each))
    require(found[-1].stop > found[-2].stop, f"config.train.ramp: {text!r} ends before it begins")
  last = _next(found[-1], train.batch_size, train.tokens / each)
  if train.steps or not train.ramp:
    last = dataclasses.replace(last, stop=train.steps or max(1, last.stop))
  require(last.stop > last.first, f"config.train.ramp: it is longer than the run, of {last.stop} steps")
  return [*found[1:], last]


def _next(phase: Phase, rows: int, until: float) -> Phase:
  """What follows a phase, until so many rows were seen."""
  before = phase.before + (phase.stop - phase.first) * phase.rows
  return Phase(rows, phase.stop, phase.stop + round((until - before) / rows), before)


def own_steps(config: Config) -> int:
  """The number of steps of a run's last stage, from either way of giving its horizon."""
  return phases(config)[-1].stop


def tokens_at(config: Config, step: int) -> int:
  """Tokens (or examples) that a run has seen when so many steps are done."""
  if not config.train.ramp:
    return step * batch_tokens(config)
  seen = sum(max(0, min(step, phase.stop) - phase.first) * phase.rows for phase in phases(config))
  return seen * data.unit(config)


def batch_tokens(config: Config) -> int:
  """Tokens of a batch; examples, where a row is one."""
  return config.train.batch_size * data.unit(config)
