"""Causal language modelling: rows of T + 1 tokens, each predicting the next."""

from typing import Any

import jax

from bigmodel.config import Config
from bigmodel.tasks.task import (
  Apply,
  LanguageFields,
  Measured,
  Task,
  Values,
  cross_entropy,
  language_objective,
  of_text,
)

DATA = "text"
Fields = LanguageFields


def check(config: Config) -> None:
  del config


def build(config: Config) -> Task:
  del config
  return Task(objective, values, of_text)


def objective(apply: Apply, rows_BxT1: jax.Array, h: dict[str, jax.Array], key: Any) -> tuple[jax.Array, Measured]:
  del key
  logits_BxTxV, auxiliary = apply(rows_BxT1[:, :-1])
  return language_objective(*cross_entropy(logits_BxTxV, rows_BxT1[:, 1:]), auxiliary, h)


def values(apply: Apply, rows_BxT1: jax.Array, key: Any) -> Values:
  del key
  return {"loss": cross_entropy(apply(rows_BxT1[:, :-1])[0], rows_BxT1[:, 1:])[0]}
