"""Training: state, step, loop, evaluation, checkpoints and metrics of one program."""

from typing import Any

from bigmodel import data
from bigmodel.config import Config, require, require_choice

DTYPES = ("float32", "bfloat16")
# Says how a run was carried out, not what it is: left out of the run's id.
PROVENANCE = (
  "train.log_every", "train.checkpoint_every", "train.keep", "train.step_timeout", "train.init_from",
  "train.layers_every",
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
      "stages": (),  # what is trained for before the config's own task; see `train.stages`
      "accumulate": 1,  # microbatches a step
      "compute_dtype": "float32",  # of activations; parameters and optimizer state are float32
      "noise_scale": False,  # measured from microbatches: up to which batch more rows are worth their compute
      "log_every": 20,
      "layers_every": 0,  # steps between statistics of every layer, a multiple of log_every; 0: none
      "checkpoint_every": 1000,
      "keep": 2,  # checkpoints
      "step_timeout": 1800.0,  # seconds without a step after which the process is ended; 0: never
    },
    # `resamples`: of the held-out documents or examples, for the intervals of the metrics.
    "eval": {"tokens": 1 << 17, "batch_size": 16, "resamples": 100},
  }


def check(config: Config) -> None:
  train = config.train
  require(
    (train.tokens > 0) != (train.steps > 0),
    f"config.train: set one of tokens (now {train.tokens}) and steps (now {train.steps})",
  )
  for name in ("batch_size", "accumulate", "log_every", "checkpoint_every"):
    require(train[name] > 0, f"config.train.{name}: {train[name]} is not positive")
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
  require_choice("train.compute_dtype", train.compute_dtype, DTYPES)
  for name in ("tokens", "batch_size"):
    require(config.eval[name] > 0, f"config.eval.{name}: {config.eval[name]} is not positive")
  require(config.eval.resamples >= 0, f"config.eval.resamples: {config.eval.resamples} is negative")


def own_steps(config: Config) -> int:
  """The number of steps of a run's last stage, from either way of giving its horizon."""
  return config.train.steps or max(1, round(config.train.tokens / batch_tokens(config)))


def steps_of(config: Config) -> int:
  """The number of steps of a run, all stages together."""
  from bigmodel.train import stages

  return stages.of(config)[-1].stop if config.train.stages else own_steps(config)


def batch_tokens(config: Config) -> int:
  """Tokens of a batch; examples, where a row is one."""
  return config.train.batch_size * data.unit(config)
