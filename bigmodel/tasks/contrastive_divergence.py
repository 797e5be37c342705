"""Contrastive divergence: one layer of a deep belief net learns to reconstruct the activations below it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require
from bigmodel.declarations import NOT_NEGATIVE, field
from bigmodel.tasks.task import Apply, Measured, Rows, Task, Traced, Values, example_rows

DATA = "examples"
LOSS = "reconstruction (nats per example)"


@dataclasses.dataclass(frozen=True)
class Fields:
  layer: int = field(0, "the hidden layer that is trained", NOT_NEGATIVE)


def check(config: Config) -> None:
  layer, depth = config.task.layer, len(config.model.hidden)
  require(0 <= layer < depth, f"config.task.layer: {layer} is none of the {depth} layers")
  require(
    not config.optim.weight_decay,
    "config.optim.weight_decay: would shrink the other layers, too; set 0 for contrastive_divergence",
  )


def build(config: Config) -> Task:
  layer = config.task.layer
  return Task(functools.partial(objective, layer), functools.partial(values, layer))


def objective(layer: int, apply: Apply, rows: Rows, h: Traced, key: jax.Array) -> tuple[jax.Array, Measured]:
  """Returns the mean difference of free energies to minimise; the loss is the mean reconstruction cross-entropy."""
  del h
  difference, reconstruction = jnp.mean(apply(example_rows(rows)[0], layer, key)[0], axis=0)
  return difference, {"loss": reconstruction}


def values(layer: int, apply: Apply, rows: Rows, key: jax.Array) -> Values:
  return {"loss": apply(example_rows(rows)[0], layer, key)[0][:, 1:]}
