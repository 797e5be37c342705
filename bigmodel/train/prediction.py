"""Predictions of a trained classification or regression model for new examples."""

import numpy as np

from bigmodel.config import require
from bigmodel.data import examples, pipeline, sources
from bigmodel.data.fields import has_numeric_targets
from bigmodel.errors import UserError
from bigmodel.train.trained import Trained


def predict(trained: Trained, inputs: np.ndarray) -> np.ndarray:
  """Class probabilities [examples, classes], or values [examples] (or quantiles) in the units of the training targets.

  `inputs` are raw, as the run's data before normalisation. Raises `UserError` for other tasks, for tables, whose
  columns are encoded, and for inputs that differ in shape from the examples of the run.
  """
  config = trained.config
  require(config.data.kind == "examples", "predict: this is a text model; use generate")
  is_table = sources.is_table(config.data)
  require(not is_table, f"predict: the data are a table ({config.data.name}), whose columns are encoded; pass arrays")
  data = pipeline.prepare(config)
  assert isinstance(data, examples.Examples)
  shape = tuple(config.model.inputs)
  inputs = np.asarray(inputs)
  wanted = f"(examples, {', '.join(map(str, shape))})"
  require(inputs.shape[1:] == shape, f"predict: inputs have the shape {inputs.shape}; it must be {wanted}")
  require(len(inputs) > 0, "predict: there are no inputs")
  require(bool(np.isfinite(inputs).all()), "predict: some inputs are not finite numbers")
  rows = ((inputs.astype(np.float32) - data.mean) / data.deviation).astype(np.float32)
  size = config.eval.batch_size
  values = [_values(trained, rows[first : first + size], size) for first in range(0, len(rows), size)]
  if "score" in values[0]:
    return np.concatenate([batch["score"] for batch in values])
  if "guess" not in values[0]:
    raise UserError(f"predict: works for classification and regression, not for {config.task.name}")
  guess = np.concatenate([batch["guess"] for batch in values])
  mean, deviation = data.facts["target_mean"], data.facts["target_deviation"]
  assert isinstance(mean, float)
  assert isinstance(deviation, float)
  guess = guess * deviation + mean
  return guess[:, 0] if guess.shape[1] == 1 else guess


def _values(trained: Trained, rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
  """The task's values for a batch, which is padded to `size` rows so that one program serves all batches."""
  padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
  target = np.float32 if has_numeric_targets(trained.config.task) else np.int32
  batch = {"inputs": padded, "targets": np.zeros(size, target)}
  return {name: value[: len(rows)] for name, value in trained.program.values(trained.params, batch, 0).items()}
