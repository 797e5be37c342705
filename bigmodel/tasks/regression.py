"""Regression: predicts a number per example, in units of its standard deviation over the training examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bigmodel.config import Config, require
from bigmodel.declarations import field
from bigmodel.tasks import metrics
from bigmodel.tasks.task import Apply, HostValues, Measured, MetricsOf, Rows, Task, Traced, Values, example_rows

DATA = "examples"
LOSS = "squared error (of the variance)"


@dataclasses.dataclass(frozen=True)
class Fields:
  quantiles: tuple[float, ...] = field((), "quantiles of the target to predict, one output each; (): its mean")


def check(config: Config) -> None:
  quantiles, outputs = config.task.quantiles, config.model.outputs
  require(
    all(0 < q < 1 for q in quantiles) and list(quantiles) == sorted(set(quantiles)),
    f"config.task.quantiles: {quantiles} do not rise within (0, 1)",
  )
  wanted = len(quantiles) or 1
  require(outputs in (0, wanted), f"config.model.outputs: {outputs}; this regression has {wanted}")


def build(config: Config) -> Task:
  quantiles = tuple(config.task.quantiles)
  train, evaluate = functools.partial(objective, quantiles), functools.partial(values, quantiles)
  return Task(train, evaluate, functools.partial(measure, quantiles))


def loss_of(quantiles: tuple[float, ...], guess_BxQ: jax.Array, target_B: jax.Array) -> jax.Array:
  """Returns the squared error, or the mean pinball loss of the quantiles (Koenker and Bassett 1978)."""
  above_BxQ = target_B[:, None] - guess_BxQ
  if not quantiles:
    return jnp.square(above_BxQ[:, 0])
  q_Q = jnp.asarray(quantiles)
  return jnp.mean(jnp.maximum(q_Q * above_BxQ, (q_Q - 1) * above_BxQ), axis=1)


def objective(
  quantiles: tuple[float, ...], apply: Apply, rows: Rows, h: Traced, key: jax.Array
) -> tuple[jax.Array, Measured]:
  del h, key
  inputs, target_B = example_rows(rows)
  loss = jnp.mean(loss_of(quantiles, apply(inputs)[0], target_B))
  return loss, {"loss": loss}


def values(quantiles: tuple[float, ...], apply: Apply, rows: Rows, key: jax.Array) -> Values:
  del key
  inputs, target_B = example_rows(rows)
  guess_BxQ = apply(inputs)[0]
  return {"loss": loss_of(quantiles, guess_BxQ, target_B)[:, None], "guess": guess_BxQ, "target": target_B[:, None]}


def measure(quantiles: tuple[float, ...], values: HostValues) -> MetricsOf:
  """Returns errors of the mean or the middle quantile, and the share of targets between the outer quantiles."""
  guess_NxQ, target_N = values["guess"], values["target"][:, 0]
  inside_N = (guess_NxQ[:, 0] <= target_N) & (target_N <= guess_NxQ[:, -1])

  def metrics_of(w_Nx1: np.ndarray) -> dict[str, ArrayLike]:
    w_N = w_Nx1[:, 0]
    errors = metrics.regression(guess_NxQ[:, len(quantiles) // 2], target_N, w_N)
    return errors | ({"coverage": metrics.mean(inside_N, w_N)} if len(quantiles) > 1 else {})

  return metrics_of
