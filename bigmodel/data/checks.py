"""Checks of `config.data`, before any data are read."""

from pathlib import Path

from bigmodel import declarations, user_files
from bigmodel.config import Config, require, require_choice
from bigmodel.data import sources
from bigmodel.data.fields import GROUPS, TOKENIZERS, Text, declared
from bigmodel.data.mixture import components

TABLE_FIELDS = ("target", "drop", "group", "classes", "window")


def check(config: Config) -> None:
  """Refuses `config.data` that cannot work, before any data are read."""
  data = config.data
  require_choice("data.kind", data.kind, GROUPS)
  declarations.check("data", GROUPS[data.kind], data)
  _check_source(data)
  if data.kind == "examples":
    _check_examples(data)
  else:
    _check_text(data)


def _check_source(data: Config) -> None:
  source = sources.find(data)
  if user_files.is_reference(data.name):
    user_files.load(data.name, "config.data.name")
  require(bool(data.path) or not source.needs_path, f"config.data.path: empty; {data.name} needs a file")
  if source.check is not None:
    source.check(data)


def _check_text(data: Config) -> None:
  if data.tokenizer.endswith(".json"):
    require(Path(data.tokenizer).expanduser().is_file(), f"config.data.tokenizer: no file {data.tokenizer!r}")
  else:
    require_choice("data.tokenizer", data.tokenizer, TOKENIZERS)
  parts = [part for _, part in components(data)]
  for part in parts[1:]:
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
  if data.tokenizer == "ids":
    require(data.vocab_size >= 2, f"config.data.vocab_size: {data.vocab_size}; at least 2")


def _check_examples(data: Config) -> None:
  source = sources.find(data)
  _check_folds(data, source.always_splits)
  require(source.scales_images or not data.image_size, "config.data.image_size: is for image_folder")
  if source.is_table is False:
    refuse_table_fields(data)
  _check_table(data, sources.is_table(data))


def _check_folds(data: Config, always_splits: bool) -> None:
  by_time = data.split == "time" or bool(data.window)
  least = 1 if by_time else 2
  require(data.folds >= least, f"config.data.folds: {data.folds}; at least {least}")
  require(data.fold < data.folds, f"config.data.fold: {data.fold} is not one of {data.folds} folds")
  given_split = always_splits and data.split == "own"
  drawn = not (by_time or given_split)
  require(drawn or not data.split_seed, "config.data.split_seed: nothing is drawn for this split")
  require(not (given_split and data.fold), "config.data.fold: the images come with a split; stratified has folds")


def refuse_table_fields(data: Config) -> None:
  """Refuses fields that have no effect on data that are not a table."""
  for name in TABLE_FIELDS:
    require(not data[name], f"config.data.{name}: is for tables")
  for name in ("min_category_rows", "max_categories", "categories"):
    require(
      data[name] == declared("examples")[name].default,
      f"config.data.{name}: {data[name]}; only tables have this field, and {sources.label(data)} is not a table",
    )


def _check_table(data: Config, is_table: bool) -> None:
  from bigmodel.data.tables import check_steps  # polars is loaded only for examples

  check_steps(tuple(data.steps))
  require(data.split != "group" or bool(data.group) or not is_table, "config.data.group: empty; split=group needs it")
  require(data.split != "time" or bool(data.time) or not is_table, "config.data.time: empty; split=time needs it")
  require(
    not data.window or data.split in ("own", "time"), f"config.data.split: {data.split}; windows are split by time"
  )
  require(not (data.window and data.group), "config.data.group: windows are of one series, without groups")
  require(len(set(data.classes)) == len(data.classes), f"config.data.classes: {data.classes} names a class twice")
  named = {data.target, data.group, data.time} - {""}
  both = sorted(named & set(data.drop))
  require(not both, f"config.data.drop: {', '.join(both)} is needed")
