"""Classification: one of several classes for each example."""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bigmodel.config import Config, require
from bigmodel.data import augment
from bigmodel.declarations import BELOW_ONE, TRACED, field
from bigmodel.models.registry.protocol import Facts
from bigmodel.tasks import metrics
from bigmodel.tasks.task import (
  Apply,
  Cell,
  HostValues,
  Measured,
  MetricsOf,
  Rows,
  Task,
  Traced,
  Values,
  cross_entropy,
  example_rows,
)

DATA = "examples"
LOSS = "loss (nats per example)"


@dataclasses.dataclass(frozen=True)
class Fields:
  label_smoothing: float = field(0.0, "share of the label's weight that is spread over all classes", BELOW_ONE, TRACED)
  class_weights: tuple[float, ...] = field(
    (), "weight of each class in the training loss; evaluation weighs all examples equally"
  )
  balanced: bool = field(False, "give all classes the same total weight, by their class_weights")
  augment: tuple[str, ...] = field((), "changes of training images, in this order; see `data.augment`")
  black: tuple[float, ...] = field((), "black in each channel of augmented images; (): that of the data")
  white: tuple[float, ...] = field((), "white in each channel of augmented images; (): that of the data")
  costs: tuple[float, ...] = field((), "costs of a false positive and of a false negative, for the metric `cost`")


def check(config: Config) -> None:
  task = config.task
  require(all(w >= 0 for w in task.class_weights), f"config.task.class_weights: {task.class_weights} are not all >= 0")
  outputs = config.model.outputs
  require(
    not task.class_weights or not outputs or len(task.class_weights) == outputs,
    f"config.task.class_weights: {len(task.class_weights)} weights for {outputs} classes",
  )

  for text in task.augment:
    augment.parse(text)
  inputs = config.model.inputs
  require(
    not task.augment or len(inputs) in (0, 3), f"config.task.augment: is for images, not for inputs of {tuple(inputs)}"
  )
  require(
    not task.costs or (len(task.costs) == 2 and min(task.costs) >= 0),
    f"config.task.costs: {task.costs} are not the costs of a false positive and of a false negative",
  )
  require(not task.costs or outputs in (0, 2), f"config.task.costs: are for two classes, but there are {outputs}")


def resolve(task: Config, facts: Facts) -> None:
  if task.augment:
    require("black" in facts, f"config.task.augment: is for images, not for inputs of {facts['inputs']}")
    task.black, task.white = task.black or facts["black"], task.white or facts["white"]
  if task.balanced:
    counts = cast("list[int]", facts["class_counts"])
    task.class_weights = tuple(sum(counts) / (len(counts) * max(count, 1)) for count in counts)


def build(config: Config) -> Task:
  task = config.task
  # A plan is made without the data; the values of black and white do not change its cost.
  augmentation = Augmentation(tuple(task.augment), tuple(task.black) or (0.0,), tuple(task.white) or (1.0,))
  train = functools.partial(objective, tuple(task.class_weights), augmentation)
  return Task(train, values, functools.partial(measure, tuple(task.costs)), details)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Augmentations of training images, and the values of black and white in each channel."""

  names: tuple[str, ...]
  black: tuple[float, ...]
  white: tuple[float, ...]


def objective(
  weights: tuple[float, ...], augmentation: Augmentation, apply: Apply, rows: Rows, h: Traced, key: jax.Array
) -> tuple[jax.Array, Measured]:
  """Returns the cross-entropy with smoothed labels (Szegedy et al. 2016, section 7), of augmented images.

  Both labels of a blended image count, each by its share and the weight of its class.
  """
  (inputs, labels_B), share_B, names = example_rows(rows), None, augmentation.names
  if names:
    black_C, white_C = (jnp.asarray(x, jnp.float32) for x in (augmentation.black, augmentation.white))
    inputs = augment.augment(names, key, (inputs - black_C) / (white_C - black_C))
    share_B = augment.mixing(names, key, len(inputs))
    inputs = (inputs if share_B is None else augment.mix(share_B, inputs)) * (white_C - black_C) + black_C
  logits_BxC, _ = apply(inputs)
  even_B = jax.nn.logsumexp(logits_BxC, axis=-1) - jnp.mean(logits_BxC, axis=-1)

  def of_labels(targets_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `(objective, cross-entropy)` of each example for these labels."""
    loss_B = cross_entropy(logits_BxC, targets_B)[0]
    weight_B = jnp.asarray(weights, jnp.float32)[targets_B] if weights else 1.0
    return weight_B * (loss_B + h["label_smoothing"] * (even_B - loss_B)), loss_B

  objective_B, loss_B = of_labels(labels_B)
  if share_B is not None:
    other_B, other_loss_B = of_labels(augment.blended_with(labels_B))
    objective_B = share_B * objective_B + (1 - share_B) * other_B
    loss_B = share_B * loss_B + (1 - share_B) * other_loss_B
  return jnp.mean(objective_B), {"loss": jnp.mean(loss_B)}


def values(apply: Apply, rows: Rows, key: jax.Array) -> Values:
  del key
  inputs, label_B = example_rows(rows)
  logits_BxC, _ = apply(inputs)
  loss_B = cross_entropy(logits_BxC, label_B)[0]
  return {"loss": loss_B[:, None], "score": jax.nn.softmax(logits_BxC), "label": label_B[:, None]}


def measure(costs: tuple[float, ...], values: HostValues) -> MetricsOf:
  """Returns all metrics of class probabilities, and `cost` at thresholds chosen on the other half of the examples."""
  score_NxC, label_N = values["score"], values["label"][:, 0].astype(int)
  metric = metrics.of_classes(score_NxC, label_N)

  def metrics_of(w_Nx1: np.ndarray) -> dict[str, ArrayLike]:
    measured = metric(w_Nx1[:, 0])
    if costs:
      measured["cost"] = metrics.cost_of_halves(score_NxC[:, 1], label_N == 1, w_Nx1[:, 0], (costs[0], costs[1]))
    return measured

  return metrics_of


def details(values: HostValues) -> dict[str, list[dict[str, Cell]]]:
  """Returns the confusion matrix with metrics per class, and the reliability curve of the likeliest class."""
  score_NxC, label_N = values["score"], values["label"][:, 0].astype(int)
  C, predicted_N, one_N = score_NxC.shape[1], score_NxC.argmax(axis=1), np.ones(len(label_N))
  matrix_CxC = metrics.confusion(label_N, predicted_N, one_N, C)
  each = metrics.by_class(matrix_CxC)
  classes = [
    {"class": c, **{f"as {p}": int(matrix_CxC[c, p]) for p in range(C)}, **{n: float(x[c]) for n, x in each.items()}}
    for c in range(C)
  ]
  curve = metrics.reliability(score_NxC.max(axis=1), predicted_N == label_N, one_N)
  bins = zip(curve["weight"], curve["confidence"], curve["hits"], strict=True)
  return {
    "confusion": classes,
    "reliability": [{"examples": int(w), "confidence": float(c), "accuracy": float(h)} for w, c, h in bins],
  }
