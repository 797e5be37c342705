"""Training: state, step, loop, evaluation, checkpoints and metrics of one program."""

import dataclasses
from typing import Any

from bigmodel import data
from bigmodel.config import Config, require, require_choice

DTYPES = ("float32", "bfloat16")
# Says how a run was carried out, not what it is: left out of the run's id.
PROVENANCE = (
  "train.log_every", "train.checkpoint_every", "train.keep", "train.step_timeout", "train.init_from",
  "train.layers_every", "train.keep_best", "eval.every",
)  # fmt: skip


def fields() -> dict[str, dict[str, Any]]:
  """The fields of `config.train` and `config.eval`, with defaults."""
  return {
    "train": {
      "tokens": 0,  # the horizon: one of tokens and steps is set
      "steps": 0,
      "init_from": "",  # folder of a run, trained or imported, whose weights to begin with
      "init_sha256": "",  # those weights; filled in when empty, refused when they differ
      "init_fresh": (),  # patterns of parameters that begin anew all the same, such as a head
      "batch_size": 16,  # rows of data.context tokens, or examples
      "ramp": (),  # 'ROWS@TOKENS': smaller batches until so many tokens (or examples) were seen, one after another
      "stages": (),  # what is trained for before the config's own task; see `train.stages`
      "accumulate": 1,  # microbatches a step
      "compute_dtype": "float32",  # of activations; parameters and optimizer state are float32
      "noise_scale": False,  # measured from microbatches: up to which batch more rows are worth their compute
      "log_every": 20,
      "layers_every": 0,  # steps between statistics of every layer, a multiple of log_every; 0: none
      "checkpoint_every": 1000,
      "keep": 2,  # checkpoints
      "keep_best": False,  # also the one with the least held-out loss of all evaluations, in the run's folder best/
      "step_timeout": 1800.0,  # seconds without a step after which the process is ended; 0: never
    },
    "eval": {
      "every": 0,  # steps between evaluations on held-out data during training; 0: only at the end
      "tokens": 1 << 17,
      "batch_size": 16,
      "resamples": 100,  # of the held-out documents or examples, for the intervals of the metrics
    },
  }


def check(config: Config) -> None:
  train = config.train
  require(
    (train.tokens > 0) != (train.steps > 0),
    f"config.train: set one of tokens (now {train.tokens}) and steps (now {train.steps})",
  )
  for name in ("batch_size", "accumulate", "log_every", "checkpoint_every"):
    require(train[name] > 0, f"config.train.{name}: {train[name]} is not positive")
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
  require(train.step_timeout >= 0, f"config.train.step_timeout: {train.step_timeout} is negative; 0 is never")
  require(train.keep >= 2, f"config.train.keep: {train.keep}; at least 2, the second is there if the first is damaged")
  require(not train.keep_best or config.eval.every > 0, "config.train.keep_best: needs evaluations; set eval.every")
  require_choice("train.compute_dtype", train.compute_dtype, DTYPES)
  for name in ("tokens", "batch_size"):
    require(config.eval[name] > 0, f"config.eval.{name}: {config.eval[name]} is not positive")
  for name in ("every", "resamples"):
    require(config.eval[name] >= 0, f"config.eval.{name}: {config.eval[name]} is negative")


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
