"""The fields of `config.train` and `config.eval`."""

import dataclasses

from bigmodel import declarations
from bigmodel.config import Config, require
from bigmodel.declarations import (
  COUNT,
  LARGEST_COUNT,
  LARGEST_WHOLE,
  NOT_NEGATIVE,
  POSITIVE,
  PROVENANCE,
  TRACED,
  OneOf,
  Range,
  field,
)
from bigmodel.train import horizon

DTYPES = ("float32", "bfloat16")


def nothing(value: object) -> None:
  """Stands for the compiled part of a field that is not compiled: it only selects the initial weights."""
  del value


@dataclasses.dataclass(frozen=True)
class Train:
  tokens: int = field(0, "the horizon, in tokens or examples; set this or steps", COUNT, TRACED)
  steps: int = field(0, "the horizon, in steps; set this or tokens", NOT_NEGATIVE, TRACED)
  init_from: str = field(
    "", "folder of a trained or imported run whose weights are the initial values", None, PROVENANCE, nothing
  )
  init_sha256: str = field("", "sha256 of those weights; filled in if empty, an error if they differ", None, TRACED)
  init_fresh: tuple[str, ...] = field((), "patterns of parameters that are initialized anew in spite of init_from")
  batch_size: int = field(16, "rows of data.context tokens, or examples", POSITIVE)
  ramp: tuple[str, ...] = field(
    (), "batch sizes to begin with, each as 'ROWS@TOKENS': ROWS until TOKENS (or examples) have been seen"
  )
  stages: tuple[str, ...] = field(
    (), "stages of training before the config's task, each as overrides; see `train.stages`"
  )
  accumulate: int = field(1, "microbatches per step", POSITIVE)
  compute_dtype: str = field(
    "float32", "dtype of activations; parameters and optimizer state are float32", OneOf(DTYPES)
  )
  noise_scale: bool = field(
    False, "measure the gradient noise scale: up to which batch size more rows are worth their compute"
  )
  log_every: int = field(20, "steps between rows of metrics", POSITIVE, PROVENANCE)
  layers_every: int = field(
    0, "steps between statistics of every layer, a multiple of log_every; 0: none", None, PROVENANCE
  )
  checkpoint_every: int = field(1000, "steps between checkpoints", POSITIVE, PROVENANCE)
  keep: int = field(
    2, "number of checkpoints to keep; an older one is used if the newest is damaged", Range(2), PROVENANCE
  )
  keep_best: bool = field(False, "also keep the checkpoint with the lowest held-out loss, in best/", None, PROVENANCE)
  step_timeout: float = field(
    1800.0, "seconds without a step after which the process ends itself; 0: never", NOT_NEGATIVE, PROVENANCE
  )


@dataclasses.dataclass(frozen=True)
class Eval:
  every: int = field(
    0, "steps between evaluations on held-out data during training; 0: only at the end", NOT_NEGATIVE, PROVENANCE
  )
  tokens: int = field(1 << 17, "held-out tokens (or examples) to evaluate", Range(0, LARGEST_COUNT, low_open=True))
  batch_size: int = field(16, "rows per batch of an evaluation", POSITIVE)
  resamples: int = field(
    100, "resamples of the held-out documents or examples, for the intervals of the metrics", NOT_NEGATIVE
  )


def check(config: Config) -> None:
  train = config.train
  declarations.check("train", Train, train)
  declarations.check("eval", Eval, config.eval)
  require(
    (train.tokens > 0) != (train.steps > 0),
    f"config.train: set one of tokens (now {train.tokens}) and steps (now {train.steps})",
  )
  require(not (train.ramp and train.stages), "config.train.ramp: cannot be combined with config.train.stages")
  steps = horizon.own_steps(config)
  require(steps <= LARGEST_WHOLE, f"config.train: the run would have {steps:.3g} steps; at most {LARGEST_WHOLE:,}")
  require(
    train.layers_every >= 0 and train.layers_every % train.log_every == 0,
    f"config.train.layers_every: {train.layers_every} is not a multiple of log_every = {train.log_every}",
  )
  require(
    train.accumulate > 1 or not train.noise_scale,
    "config.train.noise_scale: needs microbatches to compare; set accumulate to 2 or more",
  )
  require(not train.keep_best or config.eval.every > 0, "config.train.keep_best: needs evaluations; set eval.every")
