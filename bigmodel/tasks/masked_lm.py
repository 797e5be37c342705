"""Masked language modelling (Devlin et al. 2019, section 3.1): masked tokens are predicted from both sides.

Every step chooses the same number of random positions in each row. Of these, 80% are
replaced by the mask token, 10% by a random token, and 10% are unchanged.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require
from bigmodel.declarations import Range, field
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
LOSS = "loss (nats per masked token)"
# (tokens_BxT, key) -> (tokens after masking, 1 at the chosen positions)
Hide: TypeAlias = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Fields(LanguageFields):
  masked_percent: int = field(15, "percentage of a row's tokens to predict", Range(0, 100))
  mask_token: int = field(-1, "the token that stands for a masked one; -1: the last of the vocabulary")


def check(config: Config) -> None:
  task = config.task
  require(
    chosen(config) > 0 and task.masked_percent <= 100,
    f"config.task.masked_percent: {task.masked_percent}% of {config.data.context} tokens must be 1 to all",
  )
  vocab = config.model.vocab
  require(not vocab or task.mask_token < vocab, f"config.task.mask_token: {task.mask_token} is not below vocab {vocab}")
  require(
    config.model.head == "masked_lm", f"config.model.head: {config.model.head!r} predicts no tokens; use masked_lm"
  )


def chosen(config: Config) -> int:
  """Returns the number of positions of a row to predict."""
  return config.data.context * config.task.masked_percent // 100


def build(config: Config) -> Task:
  vocab = config.model.vocab
  token = config.task.mask_token if config.task.mask_token >= 0 else vocab - 1
  hidden = functools.partial(hide, count=chosen(config), mask_token=token, vocab=vocab)
  return Task(functools.partial(objective, hidden), functools.partial(values, hidden), of_text)


def hide(tokens_BxT: jax.Array, key: jax.Array, count: int, mask_token: int, vocab: int) -> tuple[jax.Array, jax.Array]:
  """Returns the tokens after masking, and a mask that is 1 at the `count` positions of each row to predict."""
  where, how, what = jax.random.split(key, 3)
  noise_BxT = jax.random.uniform(where, tokens_BxT.shape)
  order_BxT = jnp.argsort(jnp.argsort(noise_BxT, axis=-1), axis=-1)
  picked_BxT = order_BxT < count
  how_BxT = jax.random.uniform(how, tokens_BxT.shape)
  random_BxT = jax.random.randint(what, tokens_BxT.shape, 0, vocab)
  replaced = jnp.where(how_BxT < 0.8, mask_token, jnp.where(how_BxT < 0.9, random_BxT, tokens_BxT))
  return jnp.where(picked_BxT, replaced, tokens_BxT), picked_BxT.astype(jnp.float32)


def objective(hidden: Hide, apply: Apply, rows: Rows, h: Traced, key: jax.Array) -> tuple[jax.Array, Measured]:
  rows_BxT1 = text_rows(rows)
  tokens_BxT, weight_BxT = hidden(rows_BxT1[:, 1:], key)
  logits_BxTxV, auxiliary = apply(tokens_BxT)
  return language_objective(*cross_entropy(logits_BxTxV, rows_BxT1[:, 1:]), auxiliary, h, weight_BxT)


def values(hidden: Hide, apply: Apply, rows: Rows, key: jax.Array) -> Values:
  targets_BxT = text_rows(rows)[:, 1:]
  tokens_BxT, weight_BxT = hidden(targets_BxT, key)
  logits_BxTxV = apply(tokens_BxT)[0]
  loss = cross_entropy(logits_BxTxV, targets_BxT)[0]
  return {"loss": loss, "accuracy": correct(logits_BxTxV, targets_BxT), "weight": weight_BxT}
