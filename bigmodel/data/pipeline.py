"""Batches: rows of the data as a pure function of (seed, step), the same for any number of hosts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import HELD_OUT, corpus, examples, unit
from bigmodel.data.corpus import Corpus
from bigmodel.data.examples import Examples

Data = Corpus | Examples


def prepare(config: Config) -> Data:
  """The data of a config, prepared the first time."""
  return corpus.prepare(config) if config.data.kind == "text" else examples.prepare(config)


class Datasets:
  """The data of the runs of a study: prepared once for each way in which some hold examples out."""

  def __init__(self, config: Config):
    self.base = prepare(config)
    self._known = {self._key(config): self.base}

  def __call__(self, config: Config) -> Data:
    key = self._key(config)
    if key not in self._known:
      data = prepare(config)
      if isinstance(data, Examples) and isinstance(self.base, Examples):
        data = data.shared_with(self.base)
      self._known[key] = data
    return self._known[key]

  @staticmethod
  def _key(config: Config) -> tuple:
    return (
      *(config.data.get(name) for name in HELD_OUT),
      config.task.name,
      config.task.get("quantiles"),
      config.task.get("targets"),
    )


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Batches of `batch_size` of `rows` rows, of which `take` gives those at some places."""

  take: Callable[[np.ndarray], Any]
  rows: int
  batch_size: int
  seed: int
  before: int = 0  # rows that others have had

  def batch(self, step: int, start: int = 0, stop: int | None = None) -> Any:
    """Rows `start:stop` (a host's share) of the batch of `step`."""
    first = self.before + step * self.batch_size
    places = np.arange(first + start, first + (self.batch_size if stop is None else stop))
    rows = np.empty(len(places), np.int64)
    for epoch in np.unique(places // self.rows):
      here = places // self.rows == epoch
      rows[here] = _order(self.seed, int(epoch), self.rows)[places[here] % self.rows]
    return self.take(rows)

  def part(self, step: int) -> tuple[int, Callable[[int, int], Any]]:
    """The batch of `step` as (rows in it, load(start, stop)), for a host that needs only some."""
    return self.batch_size, functools.partial(self.batch, step)

  def epochs_seen(self, steps: int) -> float:
    return (self.before + steps * self.batch_size) / self.rows


@functools.lru_cache(maxsize=64)  # of as many seeds as a pack may have
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
  """The order of the rows in one epoch: every row once, anew in each epoch."""
  return np.random.default_rng((seed, epoch)).permutation(rows)


def train_pipeline(config: Config, data: Data, steps: int, before: int = 0) -> Pipeline:
  """The training rows that the config allows, behind the first `before`; refuses repeats that were not asked for."""
  take, rows = _text_rows(config, data) if isinstance(data, Corpus) else _example_rows(config, data)
  pipeline = Pipeline(take, rows, config.train.batch_size, config.data.seed, before)
  seen, each = pipeline.epochs_seen(steps), unit(config)
  what = f"{config.train.batch_size} x {each} tokens" if each > 1 else f"{config.train.batch_size} examples"
  require(
    seen <= 1 or config.data.repeat,
    f"config.train: {steps} steps of {what} are {seen:.4g} epochs of"
    f" {rows * each} {'tokens' if each > 1 else 'examples'}; set data.repeat=true to allow repeats",
  )
  return pipeline


def _text_rows(config: Config, data: Corpus) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
  """Rows of `context + 1` tokens, int32; row r begins at token r * context, so data scales nest."""
  tokens, context = data.tokens["train"], config.data.context
  check_tokens(config.data, len(tokens))
  limit = min(config.data.tokens or len(tokens), len(tokens))
  rows = (min(limit, len(tokens) - 1)) // context
  require(rows > 0, f"config.data.tokens: {config.data.tokens} is less than one row of {context}")
  return lambda places: tokens[places[:, None] * context + np.arange(context + 1)].astype(np.int32), rows


def _example_rows(config: Config, data: Examples) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], int]:
  """The first examples of an order of their own, so that data scales nest and have the classes of the whole."""
  available, asked = data.count("train"), config.data.examples
  require(asked <= available, f"config.data.examples: {asked} is more than the {available} training examples")
  order = np.random.default_rng(1).permutation(available)
  return lambda places: data.rows("train", order[places]), asked or available


def check_tokens(data: Config, available: int) -> None:
  """Refuses `data.tokens` beyond the corpus: they are of unique tokens."""
  require(
    data.tokens <= available,
    f"config.data.tokens: {data.tokens} is beyond the corpus ({available} tokens)",
  )


@dataclasses.dataclass(frozen=True)
class EvalRows:
  """Held-out rows in order; for every token or example what it belongs to, and the bytes of text it stands for."""

  rows: Any  # arrays with `count` rows
  count: int
  clusters: np.ndarray  # int64[rows, T]: documents; examples are each their own
  bytes: np.ndarray | None  # int[rows, T]; None: no text
  parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # bool[rows, T] of each part of a mixture

  def batches(self, size: int) -> Iterator[Any]:
    """Batches of `size` rows, the last filled up with the last row."""
    places = np.minimum(np.arange(-(-self.count // size) * size), self.count - 1).reshape(-1, size)
    whole = self.rows if callable(self.rows) else lambda at: self.rows[at]
    return (whole(at) for at in places)


def eval_rows(config: Config, data: Data) -> EvalRows:
  """The first `eval.tokens` held-out tokens (documents lie in hashed order), whole rows only; or examples."""
  if isinstance(data, Examples):
    count = min(config.eval.tokens, data.count("validation"))
    order = np.random.default_rng(1).permutation(data.count("validation"))
    clusters = data.clusters[data.places["validation"][order[:count]]]
    return EvalRows(lambda at: data.rows("validation", order[at]), count, clusters[:, None], None)
  context = config.data.context
  tokens, starts = data.tokens["validation"], data.starts["validation"]
  count = max(1, min(config.eval.tokens, len(tokens) - 1) // context)
  places = np.arange(count)[:, None] * context + np.arange(context + 1)
  rows = tokens[places].astype(np.int32)
  texts = np.searchsorted(starts, places[:, 1:], side="right") - 1
  parts = {}
  if data.parts is not None:
    parts = {name: data.parts[texts] == i for i, name in enumerate(data.card["parts"])}
  return EvalRows(rows, count, data.documents[texts], data.heldout_bytes[places[:, 1:]], parts)
