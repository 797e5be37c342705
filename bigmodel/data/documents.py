"""Text documents: reading them from files, cutting long ones into pieces, and choosing those that are held out.

A document is a line of a .jsonl file or a whole file of any other kind. Whether it is held out depends on its words
alone (`identity`), so copies in other files, formats or parts of a mixture are in the same split, and so are all pieces
of a long file. A corpus of a single text file is one document; its end is held out.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import lzma
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO, cast

from bigmodel.errors import UserError

VERSION = 2  # of the manifest; increase it when documents are read, cut or held out in another way
PIECE_CHARACTERS = 1 << 16  # longer texts are cut between lines into pieces of about this size
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
PACKED_SUFFIXES = (".gz", ".zst", ".xz")


@dataclasses.dataclass(frozen=True)
class TextFile:
  """A file of documents: the split it belongs to ('' where `heldout_share` decides), its name, path and hash."""

  split: str
  name: str
  path: str
  sha256: str


@dataclasses.dataclass(frozen=True)
class Document:
  """A document: the `identity` of all its words, and `(name, text)` of each of its pieces, in order."""

  identity: str
  pieces: Iterator[tuple[str, str]]


def manifest_sha256(files: list[TextFile], *settings: object) -> str:
  """The hash of a corpus: of the files' names, contents and splits, but not their folder, and of its settings."""
  rows = sorted((file.split, file.name, file.sha256) for file in files)
  return hashlib.sha256(json.dumps([VERSION, rows, settings]).encode()).hexdigest()


def suffix(path: Path) -> str:
  """The suffix of a file's name, without that of its compression."""
  return Path(path.stem).suffix if path.suffix in PACKED_SUFFIXES else path.suffix


def _open(path: Path) -> TextIO:
  errors = "replace" if path.suffix == ".py" else "strict"  # some Python files declare another encoding
  if path.suffix == ".gz":
    return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", errors=errors))
  if path.suffix == ".xz":
    return lzma.open(path, "rt", encoding="utf-8", errors=errors)
  if path.suffix == ".zst":
    import zstandard

    return cast(TextIO, zstandard.open(path, "rt", encoding="utf-8", errors=errors))
  return open(path, encoding="utf-8", errors=errors)


def documents(file: TextFile, text_key: str) -> Iterator[Document]:
  """The documents of one file, in order. Read the pieces of each before asking for the next document."""
  path = Path(file.path)
  with _decoding(path):
    if suffix(path) == ".jsonl":
      yield from _lines(file, text_key)
      return
    with _open(path) as lines:
      whole = identity(lines)
    yield Document(whole, _whole(file) if suffix(path) == ".py" else _pieces(file))


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
  """Turns the error of a file that is not UTF-8 into a `UserError` that names the file."""
  try:
    yield
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8: {error.reason} ({error.object[error.start : error.end]!r})") from error


def _lines(file: TextFile, text_key: str) -> Iterator[Document]:
  with _open(Path(file.path)) as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        text = str(json.loads(line)[text_key])
      except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.path}:{number}: no JSON object with a field {text_key!r}") from error
      yield Document(identity([text]), iter([(f"{file.name}#{number}", text)]))


def single_text(files: list[TextFile]) -> TextFile | None:
  """The only text among these files, except for copies and empty files; None where there are several or none."""
  paths = [Path(file.path) for file in files]
  if any(file.split for file in files) or any(suffix(path) == ".jsonl" for path in paths):
    return None
  different: dict[str, TextFile] = {}
  for file in files:
    for document in documents(file, ""):
      if document.identity != identity([]):
        different.setdefault(document.identity, file)
    if len(different) > 1:
      return None
  return next(iter(different.values()), None)


def divided(file: TextFile, heldout_fraction: float) -> Iterator[tuple[bool, str, str]]:
  """`(held out, name, text)` of each piece of a single document, whose end is held out.

  The held-out end starts with the first line that begins after the training share, or with the last line that has text
  if that begins earlier.
  """
  path = Path(file.path)
  with _decoding(path):
    with _open(path) as lines:
      read = last = end = 0  # where the last line with text begins, and where it ends
      for line in lines:
        read += len(line)
        if line.strip():
          last, end = read - len(line), read
      kept = min((1 - heldout_fraction) * end, last)
    with _open(path) as lines:
      piece, size, read, number = [], 0, 0, 0
      for line in lines:
        if read >= end:
          break  # the rest is blank
        ends_training = read < kept <= read + len(line)
        piece.append(line)
        size += len(line)
        read += len(line)
        if size >= PIECE_CHARACTERS or ends_training:
          yield read - size >= kept, f"{file.name}#{number}", "".join(piece)
          piece, size, number = [], 0, number + 1
      if piece:
        yield read - size >= kept, f"{file.name}#{number}", "".join(piece)


def _whole(file: TextFile) -> Iterator[tuple[str, str]]:
  with _open(Path(file.path)) as lines:
    yield file.name, lines.read()


def _pieces(file: TextFile) -> Iterator[tuple[str, str]]:
  with _open(Path(file.path)) as lines:
    for number, piece in enumerate(cut(lines)):
      yield f"{file.name}#{number}", piece


def cut(lines: Iterable[str]) -> Iterator[str]:
  """A text, given as lines with their ends, as pieces of about `PIECE_CHARACTERS`."""
  piece, size = [], 0
  for line in lines:
    piece.append(line)
    size += len(line)
    if size >= PIECE_CHARACTERS:
      yield "".join(piece)
      piece, size = [], 0
  if piece:
    yield "".join(piece)


def identity(lines: Iterable[str]) -> str:
  """A hash of the words of a text, which is given in parts that end where words end. White space has no influence."""
  digest = hashlib.blake2b(digest_size=16)
  for line in lines:
    words = line.split()
    if words:
      digest.update(f"{' '.join(words)} ".encode())
  return digest.hexdigest()


def heldout_share(identity_: str) -> float:
  """The `heldout_fraction` above which a document is held out: uniform over documents, from 0 to 1."""
  return int(identity_[:8], 16) / 2**32


def empty_split(where: str, corpus: str, shares: Collection[float], fraction: float, split: str) -> UserError:
  """The error for a split without documents; `shares` are the `heldout_share` of the different documents."""
  if not shares:
    return UserError(f"{where}: the corpus is empty: no text at {corpus}")
  if split == "validation":
    return UserError(
      f"config.data.heldout_fraction: {fraction} holds out none of the {len(shares)} documents of {corpus};"
      f" the first one is held out above {min(shares):.3g}"
    )
  return UserError(
    f"config.data.heldout_fraction: {fraction} holds out all {len(shares)} documents of {corpus};"
    f" one is left to train on up to {max(shares):.3g}"
  )
