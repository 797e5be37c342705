"""Causal language modelling: rows of T + 1 tokens, each predicting the next."""

import jax

from bigmodel.config import Config
from bigmodel.tasks.task import (
  Apply,
  LanguageFields,
  Measured,
  Rows,
  Task,
  Traced,
  Values,
  cross_entropy,
  language_objective,
  of_text,
  text_rows,
)

DATA = "text"
LOSS = "loss (nats per token)"
Fields = LanguageFields


def check(config: Config) -> None:
  del config


def build(config: Config) -> Task:
  del config
  return Task(objective, values, of_text)


def objective(apply: Apply, rows: Rows, h: Traced, key: jax.Array) -> tuple[jax.Array, Measured]:
  del key
  rows_BxT1 = text_rows(rows)
  logits_BxTxV, auxiliary = apply(rows_BxT1[:, :-1])
  return language_objective(*cross_entropy(logits_BxTxV, rows_BxT1[:, 1:]), auxiliary, h)


def values(apply: Apply, rows: Rows, key: jax.Array) -> Values:
  del key
  rows_BxT1 = text_rows(rows)
  return {"loss": cross_entropy(apply(rows_BxT1[:, :-1])[0], rows_BxT1[:, 1:])[0]}
