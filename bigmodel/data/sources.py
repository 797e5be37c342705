"""Where documents come from, before TFDS: files on this machine, their manifest, and which documents are held out.

A document is a line of a .jsonl file or a whole file of any other kind. Whether it is held out depends on its words
alone (`identity`), so copies of it in other files, formats or parts of a mixture share its fate, and so do all pieces
of a long file. A corpus that is one file of text has one document: its end is held out.
"""

import contextlib
import dataclasses
import glob
import gzip
import hashlib
import importlib.metadata
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigmodel.errors import UserError

VERSION = 2  # of the manifest: a change of how documents are read, cut or held out needs another one
PIECE_CHARACTERS = 1 << 16  # longer plain-text files are cut into pieces of about this size
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
PACKED_SUFFIXES = (".gz", ".zst", ".xz")


@dataclasses.dataclass(frozen=True)
class Source:
  """One file: the split it belongs to ('' where its documents decide), its name and hash."""

  split: str
  name: str
  path: str
  sha256: str


@dataclasses.dataclass(frozen=True)
class Document:
  """`identity` is that of the whole document; `pieces` yields `(name, text)` of each of its pieces, in order."""

  identity: str
  pieces: Iterator[tuple[str, str]]


def manifest_sha256(sources: list[Source], *settings: object) -> str:
  """Identity of a corpus: names, contents and splits, but not where the files lie; and the settings that shaped it."""
  rows = sorted((source.split, source.name, source.sha256) for source in sources)
  return hashlib.sha256(json.dumps([VERSION, rows, settings]).encode()).hexdigest()


def python_sources(train: tuple[str, ...], heldout: tuple[str, ...]) -> list[Source]:
  """The .py files of installed distributions, each content once, held-out ones first.

  A file whose content is in a held-out distribution is left out of training.
  """
  sources, seen = [], set()
  for split, names in (("validation", heldout), ("train", train)):
    for name in sorted(names):
      try:
        distribution = importlib.metadata.distribution(name)
      except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"config.data: distribution {name!r} is not installed; pip install {name}") from error
      label = f"{name}=={distribution.version}"
      for file in sorted(distribution.files or (), key=str):
        if file.suffix != ".py":
          continue
        path = Path(str(distribution.locate_file(file)))
        try:
          content = path.read_bytes()
        except OSError:
          continue  # listed in the metadata, removed from the disk
        sha256 = hashlib.sha256(content).hexdigest()
        if content.strip() and sha256 not in seen:
          seen.add(sha256)
          sources.append(Source(split, f"{label}/{file}", str(path), sha256))
  return sources


def text_sources(pattern: str) -> list[Source]:
  """The text files that `pattern` (a file, a folder or a glob) names."""
  root = Path(pattern)
  paths = sorted(root.rglob("*")) if root.is_dir() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
  # A pattern with ** in it may name a file twice.
  paths = [path for path in dict.fromkeys(paths) if path.is_file() and _suffix(path) in TEXT_SUFFIXES]
  if not paths:
    raise UserError(f"config.data.path: no .txt, .md or .jsonl file (plain, .gz, .zst, .xz) at {pattern!r}")
  base = root if root.is_dir() else _folder_without_wildcards(root)
  return [Source("", str(path.relative_to(base)), str(path), _sha256(path)) for path in paths]


def _folder_without_wildcards(pattern: Path) -> Path:
  """The last folder above everything that the pattern leaves open, so that names relative to it are unique."""
  folder = pattern.parent
  while glob.has_magic(str(folder)):
    folder = folder.parent
  return folder


def _suffix(path: Path) -> str:
  return Path(path.stem).suffix if path.suffix in PACKED_SUFFIXES else path.suffix


def _sha256(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path):
  errors = "replace" if path.suffix == ".py" else "strict"  # of Python source, some says another encoding
  if path.suffix == ".gz":
    return gzip.open(path, "rt", encoding="utf-8", errors=errors)
  if path.suffix == ".xz":
    return lzma.open(path, "rt", encoding="utf-8", errors=errors)
  if path.suffix == ".zst":
    import zstandard

    return zstandard.open(path, "rt", encoding="utf-8", errors=errors)
  return open(path, encoding="utf-8", errors=errors)


def documents(source: Source, text_key: str) -> Iterator[Document]:
  """The documents of one file, in order. The pieces of each must be read before the next document is asked for."""
  path = Path(source.path)
  with _decoding(path):
    if _suffix(path) == ".jsonl":
      yield from _lines(source, text_key)
      return
    with _open(path) as file:
      whole = identity(file)
    yield Document(whole, _file(source) if _suffix(path) == ".py" else _pieces(source))


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
  """Within it a file that is not UTF-8 is a `UserError` that names it."""
  try:
    yield
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8: {error.reason} ({error.object[error.start : error.end]!r})") from error


def _lines(source: Source, text_key: str) -> Iterator[Document]:
  with _open(Path(source.path)) as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        text = str(json.loads(line)[text_key])
      except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source.path}:{number}: no JSON object with a field {text_key!r}") from error
      yield Document(identity([text]), iter([(f"{source.name}#{number}", text)]))


def one_text(sources: list[Source]) -> Source | None:
  """The only text where these files have no other, but for copies and empty files: its end has to be held out."""
  paths = [Path(source.path) for source in sources]
  if any(source.split for source in sources) or any(_suffix(path) == ".jsonl" for path in paths):
    return None
  found: dict[str, Source] = {}
  for source in sources:
    for document in documents(source, ""):
      if document.identity != identity([]):
        found.setdefault(document.identity, source)
    if len(found) > 1:
      return None
  return next(iter(found.values()), None)


def divided(source: Source, heldout_fraction: float) -> Iterator[tuple[bool, str, str]]:
  """`(held out, name, text)` of each piece of one document, whose end is held out from the start of a line on.

  That is the first line that begins after the part to train on, or the last line with any text if that begins before.
  """
  path = Path(source.path)
  with _decoding(path):
    with _open(path) as file:
      read = last = end = 0  # where the last line with text begins, and where it ends
      for line in file:
        read += len(line)
        if line.strip():
          last, end = read - len(line), read
      kept = min((1 - heldout_fraction) * end, last)
    with _open(path) as file:
      piece, size, read, number = [], 0, 0, 0
      for line in file:
        if read >= end:
          break  # the rest is blank
        ends_training = read < kept <= read + len(line)
        piece.append(line)
        size += len(line)
        read += len(line)
        if size >= PIECE_CHARACTERS or ends_training:
          yield read - size >= kept, f"{source.name}#{number}", "".join(piece)
          piece, size, number = [], 0, number + 1
      if piece:
        yield read - size >= kept, f"{source.name}#{number}", "".join(piece)


def _file(source: Source) -> Iterator[tuple[str, str]]:
  with _open(Path(source.path)) as file:
    yield source.name, file.read()


def _pieces(source: Source) -> Iterator[tuple[str, str]]:
  """A plain-text file, cut between lines."""
  with _open(Path(source.path)) as file:
    piece, size, number = [], 0, 0
    for line in file:
      piece.append(line)
      size += len(line)
      if size >= PIECE_CHARACTERS:
        yield f"{source.name}#{number}", "".join(piece)
        piece, size, number = [], 0, number + 1
    if piece:
      yield f"{source.name}#{number}", "".join(piece)


def identity(lines: Iterable[str]) -> str:
  """A hash of the words of a text, given in parts that end where words end: copies with other white space are equal."""
  digest = hashlib.blake2b(digest_size=16)
  for line in lines:
    words = line.split()
    if words:
      digest.update(f"{' '.join(words)} ".encode())
  return digest.hexdigest()


def heldout_share(identity_: str) -> float:
  """The fraction above which a document is held out: even over documents, from 0 to 1."""
  return int(identity_[:8], 16) / 2**32
