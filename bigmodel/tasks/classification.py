"""Classification: one of several classes for each example."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require
from bigmodel.tasks.task import Apply, Task, Values, correct, cross_entropy

DATA = "examples"


def fields() -> dict[str, Any]:
  return {
    "label_smoothing": 0.0,
    "class_weights": (),  # of each class's examples in what is minimised; evaluation weighs all alike
    "balanced": False,  # all classes get the same share, by their class_weights
  }


def check(config: Config) -> None:
  task = config.task
  require(task.label_smoothing < 1, f"config.task.label_smoothing: {task.label_smoothing} is not less than 1")
  require(all(w >= 0 for w in task.class_weights), f"config.task.class_weights: {task.class_weights} has negative ones")
  outputs = config.model.outputs
  require(
    not task.class_weights or not outputs or len(task.class_weights) == outputs,
    f"config.task.class_weights: {len(task.class_weights)} weights for {outputs} classes",
  )


def resolve(task: Config, facts: dict[str, Any]) -> None:
  if task.balanced:
    counts = facts["class_counts"]
    task.class_weights = tuple(sum(counts) / (len(counts) * max(count, 1)) for count in counts)


def build(config: Config) -> Task:
  return Task(functools.partial(objective, tuple(config.task.class_weights)), values)


def objective(
  weights: tuple[float, ...], apply: Apply, batch: Any, h: dict[str, jax.Array], key: Any
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy with smoothed labels (Szegedy et al. 2016, section 7)."""
  del key
  logits_BxC, _ = apply(batch["inputs"])
  loss_B, log_z_B = cross_entropy(logits_BxC, batch["targets"])
  even_B = log_z_B - jnp.mean(logits_BxC, axis=-1)
  smoothed_B = loss_B + h["label_smoothing"] * (even_B - loss_B)
  weight_B = jnp.asarray(weights, jnp.float32)[batch["targets"]] if weights else 1.0
  return jnp.mean(weight_B * smoothed_B), jnp.mean(loss_B)


def values(apply: Apply, batch: Any, key: Any) -> Values:
  del key
  logits_BxC, _ = apply(batch["inputs"])
  loss_B = cross_entropy(logits_BxC, batch["targets"])[0]
  return {"loss": loss_B[:, None], "accuracy": correct(logits_BxC, batch["targets"])[:, None]}
