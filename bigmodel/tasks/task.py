"""What every task gives, and the losses that several share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.declarations import NOT_NEGATIVE, TRACED, field
from bigmodel.models.layers.experts import Auxiliary

# The model with its parameters: inputs -> (outputs, auxiliary numbers)
Apply = Callable[..., tuple[jax.Array, Auxiliary]]
# What is logged of a training step, by name; `loss`, the mean loss, is always there.
Measured = dict[str, jax.Array]
# Numbers for every token or example [B, T], or [B, 1]: `loss`, what else is measured, and `weight` where not all count.
Values = dict[str, jax.Array]
# (values of all held-out rows, on the host) -> a function of their weights [N, T]: the metrics
Measure = Callable[[dict[str, np.ndarray]], Callable[[np.ndarray], dict[str, Any]]]


def means(values: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, Any]]:
  """The mean of each value but the loss, which is measured anyway."""
  return lambda w: {name: float(np.sum(x * w) / np.sum(w)) for name, x in values.items() if name != "loss"}


def of_text(values: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, Any]]:
  """Those means, and the perplexity."""
  loss, others = values["loss"], means(values)
  return lambda w: {**others(w), "perplexity": math.exp(min(float(np.sum(loss * w) / np.sum(w)), 700.0))}


OF_MEANS = (means, of_text)  # what depends on weighted means alone


@dataclasses.dataclass(frozen=True)
class Task:
  """Pure functions of a batch.

  `objective(apply, batch, h, key) -> (what is minimised, what is logged)`, with the task's traced
  numbers h; `values(apply, batch, key)` for evaluation, and what `measure` and, as tables,
  `details` make of them.
  """

  objective: Callable[[Apply, Any, Any, jax.Array], tuple[jax.Array, Measured]]
  values: Callable[[Apply, Any, jax.Array], Values]
  measure: Measure = means
  details: Callable[[dict[str, np.ndarray]], dict[str, list[dict[str, Any]]]] = lambda values: {}


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`(cross-entropy, log-partition)` in nats at every target."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z - chosen, log_z


def correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def language_objective(
  loss: jax.Array, log_z: jax.Array, auxiliary: Auxiliary, h: dict[str, jax.Array], weight: Any = 1.0
) -> tuple[jax.Array, Measured]:
  """`(objective, what is logged)` of a language model; z-loss keeps log Z near 0 (PaLM, section 5)."""
  mean = lambda x: jnp.mean(x * weight) / jnp.mean(weight)
  router = sum(h[name] * auxiliary[name] for name in ("balance_loss", "router_z_loss") if name in auxiliary)
  return mean(loss) + h["z_loss"] * mean(jnp.square(log_z)) + router, {"loss": mean(loss), **auxiliary}


@dataclasses.dataclass(frozen=True)
class LanguageFields:
  """What `config.task` holds for every language model."""

  z_loss: float = field(0.0, "weight of the squared log-partition, which keeps logits near 0", NOT_NEGATIVE, TRACED)
  balance_loss: float = field(0.01, "of a mixture of experts: spreads tokens over them", NOT_NEGATIVE, TRACED)
  router_z_loss: float = field(0.0, "of a mixture of experts: keeps the router's logits small", NOT_NEGATIVE, TRACED)
