"""Batches: rows of the data as a pure function of (seed, step), the same for any number of hosts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import corpus, examples
from bigmodel.data.corpus import Corpus
from bigmodel.data.examples import Examples
from bigmodel.data.fields import HELD_OUT, unit

Data = Corpus | Examples
# Some rows: tokens, int32[rows, context + 1], or a dict of arrays of examples by name. Each task knows which it takes.
Rows = Any
Take = Callable[[np.ndarray], Rows]  # the rows at some places, int64[rows]


def prepare(config: Config, log_notes: bool = True) -> Data:
  """The data of a config, prepared the first time; `log_notes` logs what was assumed about arrays and pictures."""
  return corpus.prepare(config) if config.data.kind == "text" else examples.prepare(config, log_notes)


class Datasets:
  """The data of the runs of a study, prepared once for each choice of held-out examples."""

  def __init__(self, config: Config):
    self.base = prepare(config)
    self._prepared = {self._key(config): self.base}

  def __call__(self, config: Config) -> Data:
    key = self._key(config)
    if key not in self._prepared:
      data = prepare(config)
      if isinstance(data, Examples) and isinstance(self.base, Examples):
        data = data.shared_with(self.base)
      self._prepared[key] = data
    return self._prepared[key]

  @staticmethod
  def _key(config: Config) -> tuple[object, ...]:
    return (
      *(config.data.get(name) for name in HELD_OUT),
      config.task.name,
      config.task.get("quantiles"),
      config.task.get("targets"),
    )


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Batches of `batch_size` of the `rows` rows, which `take` gives by their places."""

  take: Take
  rows: int
  batch_size: int
  seed: int
  before: int = 0  # rows that earlier stages of the run have used

  def batch(self, step: int, start: int = 0, stop: int | None = None) -> Rows:
    """Rows `start:stop` (a host's share) of the batch of `step`."""
    first = self.before + step * self.batch_size
    places = np.arange(first + start, first + (self.batch_size if stop is None else stop))
    rows = np.empty(len(places), np.int64)
    for epoch in np.unique(places // self.rows):
      here = places // self.rows == epoch
      rows[here] = _order(self.seed, int(epoch), self.rows)[places[here] % self.rows]
    return self.take(rows)

  def part(self, step: int) -> tuple[int, Callable[[int, int], Rows]]:
    """The number of rows in the batch of `step` and `load(start, stop)`, for a host that needs only some of them."""
    return self.batch_size, functools.partial(self.batch, step)

  def epochs_seen(self, steps: int) -> float:
    """The number of times that every row has been used after so many steps."""
    return (self.before + steps * self.batch_size) / self.rows


@functools.lru_cache(maxsize=64)  # for the seeds of all members of a pack
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
  """The order of the rows in one epoch, which has every row once."""
  return np.random.default_rng((seed, epoch)).permutation(rows)


def train_pipeline(config: Config, data: Data, steps: int, before: int = 0) -> Pipeline:
  """Batches of the training rows after the first `before`; refuses repeats that `data.repeat` does not allow."""
  take, rows = _text_rows(config, data) if isinstance(data, Corpus) else _example_rows(config, data)
  pipeline = Pipeline(take, rows, config.train.batch_size, config.data.seed, before)
  seen, each = pipeline.epochs_seen(steps), unit(config)
  batch = f"{config.train.batch_size} x {each} tokens" if each > 1 else f"{config.train.batch_size} examples"
  require(
    seen <= 1 or config.data.repeat,
    f"config.train: {steps} steps of {batch} are {seen:.4g} epochs of"
    f" {rows * each} {'tokens' if each > 1 else 'examples'}; set data.repeat=true to allow repeats",
  )
  return pipeline


def _text_rows(config: Config, data: Corpus) -> tuple[Take, int]:
  """Rows of `context + 1` tokens, int32. Row r begins at token r * context, so smaller data are part of larger data."""
  tokens, context = data.tokens["train"], config.data.context
  check_tokens(config.data, len(tokens))
  limit = min(config.data.tokens or len(tokens), len(tokens))
  rows = (min(limit, len(tokens) - 1)) // context
  require(rows > 0, f"config.data.tokens: {config.data.tokens} is less than one row of {context}")

  def take(places: np.ndarray) -> np.ndarray:
    return tokens[places[:, None] * context + np.arange(context + 1)].astype(np.int32)

  return take, rows


def _example_rows(config: Config, data: Examples) -> tuple[Take, int]:
  """The first examples of a fixed random order, so that smaller data are part of larger data."""
  available, asked = data.count("train"), config.data.examples
  require(asked <= available, f"config.data.examples: {asked} is more than the {available} training examples")
  order = np.random.default_rng(1).permutation(available)
  return lambda places: data.rows("train", order[places]), asked or available


def check_tokens(data: Config, available: int) -> None:
  """Refuses a `data.tokens`, the number of unique tokens to use, that is more than the corpus has."""
  require(
    data.tokens <= available,
    f"config.data.tokens: {data.tokens} is beyond the corpus ({available} tokens)",
  )


@dataclasses.dataclass(frozen=True)
class EvalRows:
  """Held-out rows in order, with the cluster of each token or example and the bytes of text that it stands for."""

  rows: np.ndarray | Take  # an array with `count` rows, or a function of their places
  count: int
  clusters: np.ndarray  # int64[rows, T]: documents, or [rows, 1]: examples or their groups
  bytes: np.ndarray | None  # int[rows, T]; None where there is no text
  parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # bool[rows, T] of each part of a mixture

  def batches(self, size: int) -> Iterator[Rows]:
    """Batches of `size` rows, the last one padded with copies of the last row."""
    places = np.minimum(np.arange(-(-self.count // size) * size), self.count - 1).reshape(-1, size)
    rows = self.rows
    return (rows[at] if isinstance(rows, np.ndarray) else rows(at) for at in places)


def eval_rows(config: Config, data: Data) -> EvalRows:
  """The first `eval.tokens` held-out tokens, as whole rows (documents are in hashed order), or so many examples."""
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
  heldout_bytes = None if data.heldout_bytes is None else data.heldout_bytes[places[:, 1:]]
  return EvalRows(rows, count, data.documents[texts], heldout_bytes, parts)
