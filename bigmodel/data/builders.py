"""TFDS datasets in array_record, prepared and read without TensorFlow."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast
from unittest import mock

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import shuffle

from bigmodel.config import Config
from bigmodel.data.documents import TextFile, check_unchanged, cut, divided, heldout_share, identity
from bigmodel.data.documents import documents as documents_in
from bigmodel.data.sources import Documents, Text
from bigmodel.errors import UserError
from bigmodel.files import cache_dir

# Feature of prepared documents: the identity of the whole document and then, where the text is a piece, of the piece.
IDENTITIES = "bigmodel_identities"
SHUFFLED_IN_MEMORY = 128 << 20  # bytes
ENDS = 1 << 16  # bytes at either end of a file that are hashed to identify it
BUFFERED = 128 << 10  # bytes of each of a thousand buckets
Row = Mapping[str, object]  # a record of a dataset


class Generate(Protocol):
  """Yields `(name, text, identities)` of each text of a split; names are unique in it (see `IDENTITIES`)."""

  def __call__(self, split: str, /) -> Iterator[tuple[str, str, str]]: ...


class DocumentsBuilder(tfds.core.GeneratorBasedBuilder):
  """Builds the documents that a source generates, in a folder that is named by the hash of their content."""

  VERSION = tfds.core.Version("2.1.0")  # increase it when the same files give other documents
  name = "documents"

  def __init__(self, *, generate: Generate, data_dir: str, skipped: Mapping[str, int]):
    self._generate, self._skipped = generate, skipped
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("name", "text", IDENTITIES)})
    return tfds.core.DatasetInfo(builder=self, features=features, metadata=tfds.core.MetadataDict())

  def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[str, Row]]]:
    del dl_manager
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, Row]]:  # pyright: ignore[reportIncompatibleMethodOverride]
    for name, text, identities in self._generate(split):
      if text.strip():
        yield name, {"name": name, "text": text, IDENTITIES: identities}
    cast(tfds.core.MetadataDict, self.info.metadata).update(self._skipped)


@dataclasses.dataclass(frozen=True)
class FileTexts:
  """Generates the texts of files. `single`, where it is the only document, is divided between the splits.

  `skipped` counts texts that are left out, after each split.
  """

  files: list[TextFile]
  text_key: str
  heldout_fraction: float
  single: TextFile | None = None
  skipped: Counter[str] = dataclasses.field(default_factory=Counter)

  def __call__(self, split: str, /) -> Iterator[tuple[str, str, str]]:
    self.skipped.clear()  # each split reads all files
    yield from self._texts(split)
    check_unchanged(self.files)

  def _texts(self, split: str) -> Iterator[tuple[str, str, str]]:
    if self.single is not None:
      for heldout, name, text in divided(self.single, self.heldout_fraction):
        if heldout == (split == "validation"):
          yield name, text, identity([text])
      return
    seen: set[str] = set()
    for file in self.files:
      if file.split not in ("", split):
        continue
      for document in documents_in(file, self.text_key, self.skipped):
        if file.split == "":
          heldout = heldout_share(document.identity) < self.heldout_fraction
          if heldout != (split == "validation") or document.identity in seen:
            continue
          seen.add(document.identity)
        for name, text in document.pieces:
          yield name, text, joined_identities(document.identity, text)


def joined_identities(whole: str, piece: str) -> str:
  """The value of the feature `IDENTITIES`. Most documents have one piece: themselves."""
  return " ".join(dict.fromkeys([whole, identity([piece])]))


@dataclasses.dataclass(frozen=True)
class RowTexts:
  """The texts of the records of a dataset, in order; `text_key` is the feature that holds the text."""

  rows: Sequence[Row]
  text_key: str

  def __iter__(self) -> Iterator[Text]:
    for row in self.rows:
      text = _text_of(row[self.text_key], self.text_key)
      if IDENTITIES in row:
        yield _text(text, _text_of(row[IDENTITIES], IDENTITIES))
        continue
      whole = identity([text])
      for piece in cut([text]):
        yield _text(piece, joined_identities(whole, piece) if len(piece) < len(text) else whole)


def _text(text: str, identities: str) -> Text:
  return Text(text, [int(hexadecimal[:16], 16) for hexadecimal in identities.split()])


def _text_of(value: object, key: str) -> str:
  """The text that is the value of the feature `key`. Raises `UserError` for a number or an array."""
  if not isinstance(value, bytes | str):
    raise UserError(f"config.data.text_key: the feature {key!r} is not a text but of type {type(value).__name__}")
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def documents(
  data: Config,
  sha256: str,
  generate: Generate,
  empty: Callable[[str], UserError],
  skipped: Mapping[str, int] | None = None,
  passed_over: Mapping[str, int] | None = None,
) -> Documents:
  """Documents that are written to array_record when they are first opened. `empty(split)` is the error for no text.

  `skipped` are the counts of texts that `generate` leaves out; `passed_over` those of files that are not read.
  """
  left_out: dict[str, int] = {}

  def open_splits() -> Mapping[str, Iterable[Text]]:
    folder = (Path(data.dir).expanduser() if data.dir else cache_dir() / "tfds") / sha256[:16]
    builder = DocumentsBuilder(generate=generate, data_dir=str(folder), skipped={} if skipped is None else skipped)
    try:
      with quiet(), _little_memory():
        builder.download_and_prepare()
    except AssertionError as error:  # TFDS raises it for a split without documents
      raise empty("validation" if '"validation"' in str(error) else "train") from error
    finally:
      _remove_empty(folder)
    left_out.update(cast(Mapping[str, int], builder.info.metadata or {}))
    return {split: RowTexts(rows(builder, split), "text") for split in ("train", "validation")}

  return Documents(sha256, open_splits, left_out, passed_over or {})


def _remove_empty(folder: Path) -> None:
  """Removes the folders in and above this one in which an error has left nothing; others hold the documents."""
  for inside in (*sorted(folder.rglob("*"), reverse=True), folder, folder.parent):
    with contextlib.suppress(OSError):
      inside.rmdir()


def prepared(name: str, folder: str, alternatives: str) -> tfds.core.DatasetBuilder:
  """The builder of a TFDS dataset that the user prepared as array_record.

  `folder` is its data_dir, or ''. The error for an unknown name mentions the `alternatives`.
  """
  try:
    builder = tfds.builder(name, file_format="array_record", data_dir=folder or None)
  except Exception as error:
    first = str(error).strip().splitlines()
    reason = first[0] if first else type(error).__name__
    raise UserError(f"config.data.name: {name!r} is neither {alternatives} nor a TFDS dataset ({reason})") from error
  if not builder.is_prepared():
    raise UserError(f"config.data.name: TFDS dataset {name!r} is not prepared as array_record in {builder.data_dir}")
  return builder


def fingerprint(file: epath.PathLike) -> list[object]:
  """Name, size and a hash of both ends of a file of records; the end of an array_record file lists its records."""
  path = epath.Path(file)
  size = path.stat().length
  with path.open("rb") as opened:
    start = opened.read(ENDS)
    opened.seek(max(0, size - ENDS))
    return [path.name, size, hashlib.sha256(start + opened.read()).hexdigest()]


def rows(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Row]:
  """The records of a split, with random access."""
  return cast(Sequence[Row], builder.as_data_source(split=split))  # pyright: ignore[reportCallIssue]


class _Bucket:
  """Serialised examples on disk that TFDS has sorted into one bucket; TFDS's bucket on disk needs TensorFlow."""

  def __init__(self, path: epath.PathLike):
    self._path = Path(path)
    self._buffer: list[tuple[int, bytes]] = []
    self._buffered_bytes = 0
    self.size = self._length = 0

  def __len__(self) -> int:
    return self._length

  def add(self, key: int, data: bytes) -> None:
    self._buffer.append((key, data))
    self._buffered_bytes += len(data)
    self.size += len(data)
    self._length += 1
    if self._buffered_bytes >= BUFFERED:
      self.flush()

  def flush(self) -> None:
    # The file is not kept open, because many machines do not allow a thousand open files, one per bucket.
    with open(self._path, "ab") as file:
      for item in self._buffer:
        pickle.dump(item, file)
    self._buffer, self._buffered_bytes = [], 0

  def read_values(self) -> Iterator[tuple[int, bytes]]:
    self.flush()
    with open(self._path, "rb") as file:
      while file.peek(1):
        yield pickle.load(file)

  def del_file(self) -> None:
    self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
  """Lets TFDS shuffle less data in memory, and more on disk, than its 1 GB; the order stays the same."""
  with mock.patch.multiple(shuffle, MAX_MEM_BUFFER_SIZE=SHUFFLED_IN_MEMORY, _Bucket=_Bucket):
    yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Suppresses the progress bars and notes of TFDS."""
  tfds.disable_progress_bar()
  level = logging.getLogger().level
  logging.getLogger().setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.getLogger().setLevel(level)
