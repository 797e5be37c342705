"""Documents as TFDS datasets in array_record, prepared and read without TensorFlow."""

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from bigmodel.config import Config
from bigmodel.data import sources
from bigmodel.files import UserError, cache_dir


class Documents(tfds.core.GeneratorBasedBuilder):
  """Text documents of `sources`; prepared in a folder of its own, named by the manifest's hash."""

  VERSION = tfds.core.Version("1.0.0")
  name = "documents"

  def __init__(self, *, files: list[sources.Source], text_key: str, heldout_fraction: float, **kwargs: Any):
    self._files = files
    self._text_key = text_key
    self._heldout_fraction = heldout_fraction
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str):  # pyright: ignore[reportIncompatibleMethodOverride]
    seen = set()
    for source in self._files:
      if source.split not in ("", split):
        continue
      for name, text in sources.documents(source, self._text_key):
        if not text.strip():
          continue
        if source.split == "":
          heldout = sources.is_heldout(text, self._heldout_fraction)
          if heldout != (split == "validation") or hash(text) in seen:
            continue
          seen.add(hash(text))
        yield name, {"name": name, "text": text}


def manifest(data: Config) -> tuple[str, list[sources.Source]]:
  """The manifest's hash and the files, for the two embedded sources."""
  if data.name == "python_source":
    files = sources.python_sources(tuple(data.distributions), tuple(data.heldout))
    return sources.manifest_sha256(files), files
  files = sources.text_sources(data.path)
  return sources.manifest_sha256(files, f"{data.heldout_fraction} {data.text_key}"), files


def open_splits(data: Config) -> tuple[str, str, dict[str, Sequence[dict]]]:
  """`(manifest hash, field of the text, {split: random-access documents})`, preparing it if needed."""
  if data.name not in ("python_source", "text_files"):
    return _open_tfds(data)
  sha256, files = manifest(data)
  root = Path(data.dir) if data.dir else cache_dir() / "tfds"
  builder = Documents(
    files=files,
    text_key=data.text_key,
    heldout_fraction=data.heldout_fraction,
    data_dir=str(root / sha256[:16]),
    file_format="array_record",
  )
  try:
    with _quiet():
      builder.download_and_prepare()
  except AssertionError as error:  # what TFDS makes of a split without documents
    split = "validation" if '"validation"' in str(error) else "train"
    raise UserError(f"config.data: the corpus is empty: no document in split {split!r}") from error
  return sha256, "text", {split: _source(builder, split) for split in ("train", "validation")}


def prepared(name: str, folder: str, what: str) -> Any:
  """The builder of a TFDS dataset that the user prepared as array_record; `what` else could be meant."""
  where: Any = {"data_dir": folder} if folder else {}
  try:
    builder = tfds.builder(name, file_format="array_record", **where)
  except Exception as error:
    first = str(error).strip().splitlines()
    raise UserError(
      f"config.data.name: {name!r} is neither {what} nor a TFDS dataset ({first[0] if first else type(error).__name__})"
    ) from error
  if not builder.is_prepared():
    raise UserError(f"config.data.name: TFDS dataset {name!r} is not prepared as array_record in {builder.data_dir}")
  return builder


def _open_tfds(data: Config) -> tuple[str, str, dict[str, Sequence[dict]]]:
  """The text of a TFDS dataset that the user prepared."""
  builder = prepared(data.name, data.dir, "python_source, text_files")
  names = {"train": data.train_split, "validation": data.eval_split}
  opened = {}
  for split, name in names.items():
    try:
      opened[split] = _source(builder, name)
    except Exception as error:
      raise UserError(f"config.data: {data.name} has no split {name!r} ({error})") from error
  features: Any = builder.info.features or {}
  if data.text_key not in features:
    raise UserError(f"config.data.text_key: {data.name} has no feature {data.text_key!r}; it has {', '.join(features)}")
  splits = {name: builder.info.splits[name.split("[")[0]] for name in names.values()}
  sizes = [(name, split.num_examples, split.num_bytes) for name, split in splits.items()]
  return sources.manifest_sha256([], f"{builder.info.full_name} {data.text_key} {sizes}"), data.text_key, opened


def _source(builder: Any, split: str) -> Sequence[dict]:
  return builder.as_data_source(split=split)


@contextlib.contextmanager
def _quiet():
  """TFDS prints bars and notes of its own; what a user needs to know comes from `data --card`."""
  tfds.disable_progress_bar()
  level = logging.getLogger().level
  logging.getLogger().setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.getLogger().setLevel(level)
