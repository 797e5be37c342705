"""Regression: a number for each example, in units of its deviation over the training examples."""

from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require
from bigmodel.tasks.task import Apply, Task, Values

DATA = "examples"


def fields() -> dict[str, Any]:
  return {}


def check(config: Config) -> None:
  outputs = config.model.outputs
  require(outputs in (0, 1), f"config.model.outputs: {outputs}; a regression has 1")


def build(config: Config) -> Task:
  del config
  return Task(objective, values, summary)


def objective(apply: Apply, batch: Any, h: dict[str, jax.Array], key: Any) -> tuple[jax.Array, jax.Array]:
  del h, key
  loss = jnp.mean(jnp.square(apply(batch["inputs"])[0][:, 0] - batch["targets"]))
  return loss, loss


def values(apply: Apply, batch: Any, key: Any) -> Values:
  del key
  error_B, target_B = apply(batch["inputs"])[0][:, 0] - batch["targets"], batch["targets"]
  named = {"loss": error_B**2, "absolute_error": jnp.abs(error_B), "target": target_B, "target_squared": target_B**2}
  return {name: value[:, None] for name, value in named.items()}


def summary(means: dict[str, float]) -> dict[str, float]:
  """Mean absolute error, and the share of the variance that is explained."""
  variance = means["target_squared"] - means["target"] ** 2
  return {"absolute_error": means["absolute_error"], "r2": 1 - means["loss"] / max(variance, 1e-12)}
