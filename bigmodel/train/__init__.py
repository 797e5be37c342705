"""Training: state, step, loop, evaluation, checkpoints and metrics of one program."""

import dataclasses

from bigmodel import data, declarations
from bigmodel.config import Config, require
from bigmodel.train.fields import Eval, Train


def check(config: Config) -> None:
  train = config.train
  require(
    (train.tokens > 0) != (train.steps > 0),
    f"config.train: set one of tokens (now {train.tokens}) and steps (now {train.steps})",
  )
  declarations.check("train", Train, train)
  declarations.check("eval", Eval, config.eval)
  require(not (train.ramp and train.stages), "config.train.ramp: not with stages")
  phases(config)
  require(
    train.layers_every >= 0 and train.layers_every % train.log_every == 0,
    f"config.train.layers_every: {train.layers_every} is not a multiple of log_every = {train.log_every}",
  )
  require(
    train.accumulate > 1 or not train.noise_scale,
    "config.train.noise_scale: needs microbatches to compare; set accumulate to 2 or more",
  )
  require(not train.keep_best or config.eval.every > 0, "config.train.keep_best: needs evaluations; set eval.every")


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


def steps_of(config: Config) -> int:
  """The number of steps of a run, all stages together."""
  from bigmodel.train import stages

  return stages.of(config)[-1].stop if config.train.stages else own_steps(config)


def batch_tokens(config: Config) -> int:
  """Tokens of a batch; examples, where a row is one."""
  return config.train.batch_size * data.unit(config)
