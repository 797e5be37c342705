"""The interface of tasks, and losses that several tasks share."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bigmodel.declarations import NOT_NEGATIVE, TRACED, field
from bigmodel.models.layers.experts import Auxiliary

# The model with its parameters: inputs -> (outputs, auxiliary numbers)
Apply = Callable[..., tuple[jax.Array, Auxiliary]]
# Rows of a batch: tokens [B, T + 1], or arrays [B, ...] by name.
Rows: TypeAlias = "jax.Array | Mapping[str, jax.Array]"
# A task's traced fields, by name.
Traced: TypeAlias = Mapping[str, jax.Array | float]
# Logged numbers of a training step, by name; always includes the mean loss as `loss`.
Measured = dict[str, jax.Array]
# Numbers per token [B, T] or example [B, 1]: `loss`, other measurements, and `weight` if weights differ.
Values = dict[str, jax.Array]
# The same for all held-out rows, on the host.
HostValues = dict[str, np.ndarray]
# Metrics by name, as a function of the weights [N, T] of tokens or examples.
MetricsOf = Callable[[np.ndarray], dict[str, ArrayLike]]
Measure = Callable[[HostValues], MetricsOf]
# A cell of a table.
Cell = int | float | str


def means(values: HostValues) -> MetricsOf:
  """Returns the mean of each value except the loss, which is always measured."""
  return lambda w: {name: float(np.sum(x * w) / np.sum(w)) for name, x in values.items() if name != "loss"}


def of_text(values: HostValues) -> MetricsOf:
  """Returns the means, and the perplexity."""
  loss, others = values["loss"], means(values)
  return lambda w: {**others(w), "perplexity": math.exp(min(float(np.sum(loss * w) / np.sum(w)), 700.0))}


OF_MEANS = (means, of_text)  # metrics that depend only on weighted means


def no_details(values: HostValues) -> dict[str, list[dict[str, Cell]]]:
  """Returns no tables."""
  del values
  return {}


@dataclasses.dataclass(frozen=True)
class Task:
  """Pure functions of a batch.

  `objective(apply, rows, h, key)` returns the objective to minimise and the numbers to log, given the task's traced
  numbers h. `values(apply, rows, key)` evaluates rows; `measure` turns values into metrics and `details` into tables.
  """

  objective: Callable[[Apply, Rows, Traced, jax.Array], tuple[jax.Array, Measured]]
  values: Callable[[Apply, Rows, jax.Array], Values]
  measure: Measure = means
  details: Callable[[HostValues], dict[str, list[dict[str, Cell]]]] = no_details


def text_rows(rows: Rows) -> jax.Array:
  """Returns the rows of a text batch, one array of tokens [B, T + 1]."""
  assert not isinstance(rows, Mapping)
  return rows


def example_rows(rows: Rows) -> tuple[jax.Array, jax.Array]:
  """Returns `(inputs, targets)` of a batch of examples."""
  assert isinstance(rows, Mapping)
  return rows["inputs"], rows["targets"]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns `(cross-entropy, log-partition)` in nats at every target."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z - chosen, log_z


def correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns 1 at every target that has the largest logit, otherwise 0."""
  return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def language_objective(
  loss: jax.Array, log_z: jax.Array, auxiliary: Auxiliary, h: Traced, weight: ArrayLike = 1.0
) -> tuple[jax.Array, Measured]:
  """Returns `(objective, logged numbers)` of a language model; z-loss keeps log Z near 0 (PaLM, section 5)."""

  def mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x * weight) / jnp.mean(weight)

  router = router_loss(auxiliary, h)
  return mean(loss) + h["z_loss"] * mean(jnp.square(log_z)) + router, {"loss": mean(loss), **auxiliary}


def router_loss(auxiliary: Auxiliary, h: Traced) -> jax.Array | int:
  """Returns the weighted losses of a mixture of experts; 0 for other models."""
  return sum(h[name] * auxiliary[name] for name in ("balance_loss", "router_z_loss") if name in auxiliary)


@dataclasses.dataclass(frozen=True)
class RouterFields:
  """Fields of `config.task` for all text models, whose blocks may be mixtures of experts."""

  balance_loss: float = field(0.01, "weight of the loss that balances tokens over experts", NOT_NEGATIVE, TRACED)
  router_z_loss: float = field(0.0, "weight of the loss that keeps router logits small", NOT_NEGATIVE, TRACED)


@dataclasses.dataclass(frozen=True)
class LanguageFields(RouterFields):
  """Fields of `config.task` for every language model."""

  z_loss: float = field(0.0, "weight of the squared log-partition, which keeps logits near 0", NOT_NEGATIVE, TRACED)
