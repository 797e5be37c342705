"""Documents as TFDS datasets in array_record, prepared and read without TensorFlow."""

import contextlib
import hashlib
import io
import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import shuffle

from bigmodel.config import Config
from bigmodel.data import sources
from bigmodel.errors import UserError
from bigmodel.files import cache_dir

SOURCES = ("python_source", "text_files")  # of documents that are read here; any other name is a TFDS dataset
# Feature of prepared documents: the identity of the whole document and then, where the text is a piece, of the piece.
IDENTITIES = "bigmodel_identities"
SHUFFLED_IN_MEMORY = 128 << 20  # bytes
ENDS = 1 << 16  # bytes of either end of a file that tell it from another one
BUFFERED = 128 << 10  # bytes of each of a thousand buckets


class Documents(tfds.core.GeneratorBasedBuilder):
  """Text documents of `sources`; prepared in a folder of its own, named by the manifest's hash."""

  VERSION = tfds.core.Version("2.0.0")
  name = "documents"

  def __init__(
    self,
    *,
    files: list[sources.Source],
    text_key: str,
    heldout_fraction: float,
    divides: sources.Source | None,
    **kwargs: Any,
  ):
    self._files = files
    self._text_key = text_key
    self._heldout_fraction = heldout_fraction
    self._divides = divides  # the file of a corpus of one document
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("name", "text", IDENTITIES)})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str):  # pyright: ignore[reportIncompatibleMethodOverride]
    if self._divides:
      for heldout, name, text in sources.divided(self._divides, self._heldout_fraction):
        if heldout == (split == "validation") and text.strip():
          yield name, {"name": name, "text": text, IDENTITIES: sources.identity([text])}
      return
    seen: set[str] = set()
    for source in self._files:
      if source.split not in ("", split):
        continue
      for document in sources.documents(source, self._text_key):
        if source.split == "":
          heldout = sources.heldout_share(document.identity) < self._heldout_fraction
          if heldout != (split == "validation") or document.identity in seen:
            continue
          seen.add(document.identity)
        for name, text in document.pieces:
          if text.strip():
            # Most documents have one piece: themselves.
            identities = " ".join(dict.fromkeys([document.identity, sources.identity([text])]))
            yield name, {"name": name, "text": text, IDENTITIES: identities}


def manifest(data: Config) -> tuple[str, list[sources.Source]]:
  """The manifest's hash and the files, for the two embedded sources."""
  if data.name == "python_source":
    files = sources.python_sources(tuple(data.distributions), tuple(data.heldout))
    return sources.manifest_sha256(files, data.name), files
  files = sources.text_sources(data.path)
  settings = (data.name, data.heldout_fraction, data.text_key, _divides(data, files) is not None)
  return sources.manifest_sha256(files, *settings), files


def _divides(data: Config, files: list[sources.Source]) -> sources.Source | None:
  """The file of a corpus of one document, whose end is held out; in a mixture other parts may hold that document."""
  return None if data.mixture else sources.one_text(files)


def open_splits(data: Config) -> tuple[str, str, dict[str, Sequence[dict]]]:
  """`(manifest hash, field of the text, {split: random-access documents})`, preparing it if needed."""
  if data.name not in SOURCES:
    return _open_tfds(data)
  sha256, files = manifest(data)
  root = Path(data.dir) if data.dir else cache_dir() / "tfds"
  builder = Documents(
    files=files,
    text_key=data.text_key,
    heldout_fraction=data.heldout_fraction,
    divides=_divides(data, files),
    data_dir=str(root / sha256[:16]),
    file_format="array_record",
  )
  try:
    with _quiet(), _little_memory():
      builder.download_and_prepare()
  except AssertionError as error:  # what TFDS makes of a split without documents
    raise _empty(data, files, "validation" if '"validation"' in str(error) else "train") from error
  return sha256, "text", {split: _source(builder, split) for split in ("train", "validation")}


def _empty(data: Config, files: list[sources.Source], split: str) -> UserError:
  """What to say of a split without documents."""
  if data.name == "python_source":
    return UserError(f"config.data: the corpus is empty: no document in split {split!r}")
  identities = {document.identity for file in files for document in sources.documents(file, data.text_key)}
  shares = {sources.heldout_share(one) for one in identities - {sources.identity([])}}
  if not shares:
    return UserError(f"config.data.path: the corpus is empty: no text at {data.path}")
  if _divides(data, files):
    return UserError(
      f"config.data.path: {data.path} is one document with too few lines to hold out its end (heldout_fraction ="
      f" {data.heldout_fraction}); give more text, or several files"
    )
  if len(shares) == 1:
    return UserError(
      f"config.data.path: {data.path} holds one document, which is not divided between training and evaluation in a"
      " mixture or a .jsonl file; give several files, or a .jsonl file with a document a line"
    )
  fraction = data.heldout_fraction
  if split == "validation":
    return UserError(
      f"config.data.heldout_fraction: {fraction} holds out none of the {len(shares)} documents of {data.path};"
      f" the first one is held out above {min(shares):.3g}"
    )
  return UserError(
    f"config.data.heldout_fraction: {fraction} holds out all {len(shares)} documents of {data.path};"
    f" one is left to train on up to {max(shares):.3g}"
  )


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
  builder = prepared(data.name, data.dir, ", ".join(SOURCES))
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
  whole_splits = sorted({name.split("[")[0] for name in names.values()})
  files = [fingerprint(path) for name in whole_splits for path in builder.info.splits[name].filepaths]
  sha256 = sources.manifest_sha256([], builder.info.full_name, data.text_key, names, files)
  return sha256, data.text_key, opened


def fingerprint(file: epath.PathLike) -> list[object]:
  """Name, size and a hash of both ends of a file of records; the end of an array_record file lists its records."""
  path = epath.Path(file)
  size = path.stat().length
  with path.open("rb") as opened:
    start = opened.read(ENDS)
    opened.seek(max(0, size - ENDS))
    return [path.name, size, hashlib.sha256(start + opened.read()).hexdigest()]


def _source(builder: Any, split: str) -> Sequence[dict]:
  return builder.as_data_source(split=split)


class _Bucket:
  """Serialised examples that TFDS has sorted into one bucket, on disk: its own needs TensorFlow for that."""

  def __init__(self, path: Any):
    self._path, self._waiting, self._waits = Path(path), [], 0
    self.size = self._length = 0

  def __len__(self) -> int:
    return self._length

  def add(self, key: int, data: bytes) -> None:
    self._waiting.append((key, data))
    self._waits += len(data)
    self.size += len(data)
    self._length += 1
    if self._waits >= BUFFERED:
      self.flush()

  def flush(self) -> None:
    # Opened for this only: there are a thousand buckets, and fewer files may be open on many machines.
    with open(self._path, "ab") as file:
      for item in self._waiting:
        pickle.dump(item, file)
    self._waiting, self._waits = [], 0

  def read_values(self) -> Iterator[tuple[int, bytes]]:
    self.flush()
    with open(self._path, "rb") as file:
      while file.peek(1):
        yield pickle.load(file)

  def del_file(self) -> None:
    self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def _little_memory():
  """TFDS shuffles up to a GB in memory: here less, and on disk what is more, in the same order."""
  with mock.patch.multiple(shuffle, MAX_MEM_BUFFER_SIZE=SHUFFLED_IN_MEMORY, _Bucket=_Bucket):
    yield


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
