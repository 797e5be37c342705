"""Sequence to sequence: half of a row is the source; the target is the other half, or the source reversed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require
from bigmodel.declarations import OneOf, field
from bigmodel.tasks.task import (
  Apply,
  LanguageFields,
  Measured,
  Rows,
  Task,
  Traced,
  Values,
  correct,
  cross_entropy,
  language_objective,
  of_text,
  text_rows,
)

DATA = "text"
LOSS = "loss (nats per target token)"
TARGETS = ("next", "reversed")
BEGIN = 0  # the first decoder input of a reversed target


@dataclasses.dataclass(frozen=True)
class Fields(LanguageFields):
  target: str = field("next", "what follows the source in the text, or the source reversed", OneOf(TARGETS))


def check(config: Config) -> None:
  require(config.data.context % 2 == 0, f"config.data.context: {config.data.context} is odd; half of it is the source")


def build(config: Config) -> Task:
  target = config.task.target
  return Task(functools.partial(objective, target), functools.partial(values, target), of_text)


def pair(rows_BxT1: jax.Array, target: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns `(source_BxS, decoder inputs_BxS, targets_BxS)`."""
  S = rows_BxT1.shape[1] // 2
  source_BxS = rows_BxT1[:, 1 : S + 1]
  if target == "next":
    return source_BxS, rows_BxT1[:, S:-1], rows_BxT1[:, S + 1 :]
  said_BxS = source_BxS[:, ::-1]
  return source_BxS, jnp.pad(said_BxS[:, :-1], ((0, 0), (1, 0)), constant_values=BEGIN), said_BxS


def objective(target: str, apply: Apply, rows: Rows, h: Traced, key: jax.Array) -> tuple[jax.Array, Measured]:
  del key
  source_BxS, read_BxS, said_BxS = pair(text_rows(rows), target)
  logits_BxSxV, auxiliary = apply(source_BxS, read_BxS)
  return language_objective(*cross_entropy(logits_BxSxV, said_BxS), auxiliary, h)


def values(target: str, apply: Apply, rows: Rows, key: jax.Array) -> Values:
  """Returns the values of every target, at the position of its token in the row."""
  del key
  source_BxS, read_BxS, said_BxS = pair(text_rows(rows), target)
  logits_BxSxV = apply(source_BxS, read_BxS)[0]
  S, backwards = source_BxS.shape[1], target == "reversed"

  def placed(x_BxS: jax.Array) -> jax.Array:
    other = jnp.zeros_like(x_BxS)
    return jnp.concatenate([x_BxS[:, ::-1], other] if backwards else [other, x_BxS], axis=1)

  loss, hit = cross_entropy(logits_BxSxV, said_BxS)[0], correct(logits_BxSxV, said_BxS)
  return {"loss": placed(loss), "accuracy": placed(hit), "weight": placed(jnp.ones((len(loss), S), jnp.float32))}
