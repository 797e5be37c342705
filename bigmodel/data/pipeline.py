"""Batches: rows of the corpus as a pure function of (seed, step), the same for any number of hosts."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data.corpus import Corpus


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Rows of `context + 1` tokens; row r begins at token r * context, so data scales nest."""

  tokens: np.ndarray
  rows: int
  context: int
  batch_size: int
  seed: int

  def batch(self, step: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start:stop` (a host's share) of the batch of `step`, int32[rows, context + 1]."""
    first = step * self.batch_size
    places = np.arange(first + start, first + (self.batch_size if stop is None else stop))
    rows = np.empty(len(places), np.int64)
    for epoch in np.unique(places // self.rows):
      here = places // self.rows == epoch
      rows[here] = _order(self.seed, int(epoch), self.rows)[places[here] % self.rows]
    return self.tokens[rows[:, None] * self.context + np.arange(self.context + 1)].astype(np.int32)

  def part(self, step: int) -> tuple[int, Callable[[int, int], np.ndarray]]:
    """The batch of `step` as (rows in it, load(start, stop)), for a host that needs only some."""
    return self.batch_size, functools.partial(self.batch, step)

  def epochs_seen(self, steps: int) -> float:
    return steps * self.batch_size / self.rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
  """The order of the rows in one epoch: every row once, anew in each epoch."""
  return np.random.default_rng((seed, epoch)).permutation(rows)


def train_pipeline(config: Config, corpus: Corpus, steps: int) -> Pipeline:
  """The training rows that `data.tokens` allows; refuses repeats that were not asked for."""
  data, tokens = config.data, corpus.tokens["train"]
  check_tokens(data, len(tokens))
  limit = min(data.tokens or len(tokens), len(tokens))
  rows = (min(limit, len(tokens) - 1)) // data.context
  require(rows > 0, f"config.data.tokens: {data.tokens} is less than one row of {data.context}")
  pipeline = Pipeline(tokens, rows, data.context, config.train.batch_size, data.seed)
  seen = pipeline.epochs_seen(steps)
  require(
    seen <= 1 or data.repeat,
    f"config.train: {steps} steps of {config.train.batch_size} x {data.context} tokens are {seen:.2f} epochs of"
    f" {rows * data.context} tokens; set data.repeat=true to allow repeats",
  )
  return pipeline


def check_tokens(data: Config, available: int) -> None:
  """Refuses `data.tokens` beyond the corpus unless repeats are allowed."""
  require(
    data.tokens <= available or data.repeat,
    f"config.data.tokens: {data.tokens} is beyond the corpus ({available} tokens);"
    " set data.repeat=true to allow repeats",
  )


@dataclasses.dataclass(frozen=True)
class EvalRows:
  """Held-out rows in order, the document of every target, and the bytes that targets stand for."""

  rows: np.ndarray  # int32[rows, context + 1]
  documents: np.ndarray  # int64[rows, context]
  bytes: int


def eval_rows(config: Config, corpus: Corpus) -> EvalRows:
  """The first `eval.tokens` held-out tokens (documents lie in hashed order), whole rows only."""
  context = config.data.context
  tokens, starts = corpus.tokens["validation"], corpus.starts["validation"]
  count = max(1, min(config.eval.tokens, len(tokens) - 1) // context)
  places = np.arange(count)[:, None] * context + np.arange(context + 1)
  rows = tokens[places].astype(np.int32)
  documents = np.searchsorted(starts, places[:, 1:], side="right") - 1
  return EvalRows(rows, documents, int(corpus.token_bytes[rows[:, 1:]].sum()))
