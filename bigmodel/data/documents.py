"""Text documents: reading them from files, cutting long ones into pieces, and choosing those that are held out.

A document is a line of a .jsonl file or a whole file of another kind. Whether it is held out depends on its words
alone (`identity`), so copies in other files, formats or parts of a mixture are in the same split, and so are all pieces
of a long file. A corpus of a single text file is one document; its end is held out.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from bigmodel.errors import UserError
from bigmodel.readers import json_lines, packed, plain_text

VERSION = 2  # of the manifest; increase it when documents are read, cut or held out in another way
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")  # .json is read only where the path names it
PACKED_SUFFIXES = packed.PACKED_SUFFIXES
NULL, BLANK = "null texts skipped", "blank texts skipped"


@dataclasses.dataclass(frozen=True)
class TextFile:
  """A file of documents: the split it belongs to ('' where `heldout_share` decides), its name, path and hash."""

  split: str
  name: str
  path: str
  sha256: str
  stamp: tuple[int, int] | None = None  # see `stamp`; None: not checked


@dataclasses.dataclass(frozen=True)
class Document:
  """A document: the `identity` of all its words, and `(name, text)` of each of its pieces, in order."""

  identity: str
  pieces: Iterator[tuple[str, str]]


def manifest_sha256(files: list[TextFile], *settings: object) -> str:
  """The hash of a corpus: of the files' names, contents and splits, but not their folder, and of its settings."""
  rows = sorted((file.split, file.name, file.sha256) for file in files)
  return hashlib.sha256(json.dumps([VERSION, rows, settings]).encode()).hexdigest()


def is_json_lines(path: str) -> bool:
  return packed.suffix(path) in JSON_SUFFIXES


def documents(file: TextFile, text_key: str, skipped: Counter[str] | None = None) -> Iterator[Document]:
  """The documents of one file, in order. Read the pieces of each before asking for the next document.

  `skipped` counts the lines of JSON whose text is null or blank.
  """
  if is_json_lines(file.path):
    yield from _lines(file, text_key, Counter() if skipped is None else skipped)
    return
  whole = identity(plain_text.blocks(file.path))
  yield Document(whole, _whole(file) if file.path.endswith(".py") else _pieces(file))


def _lines(file: TextFile, text_key: str, skipped: Counter[str]) -> Iterator[Document]:
  for number, row in json_lines.rows(file.path):
    where = f"{file.path}, line {number}"
    value = _field(row, text_key, where)
    if value is None:
      skipped[NULL] += 1
      continue
    text = json_lines.text(value, text_key, where)
    if not text or text.isspace():
      skipped[BLANK] += 1
      continue
    yield Document(identity([text]), _cut(f"{file.name}#{number}", text))


def _field(row: Mapping[str, object], text_key: str, where: str) -> object:
  """The value of the field `text_key`. Raises `UserError` with the option that names it."""
  try:
    return json_lines.value(row, text_key, where)
  except UserError as error:
    example = json_lines.longest_text(row)
    advice = f", as config.data.text_key={example}" if example.isprintable() and 0 < len(example) <= 80 else ""
    raise UserError(f"{error}; name the field with the text in config.data.text_key{advice}") from error


def _cut(name: str, text: str) -> Iterator[tuple[str, str]]:
  """`(name, text)` of a text, or of its pieces where it is too long to be tokenized as a whole."""
  if len(text) <= plain_text.LONGEST:
    yield name, text
  else:
    yield from ((f"{name}.{number}", piece) for number, piece in enumerate(plain_text.pieces([text])))


def check_unchanged(files: Iterable[TextFile]) -> None:
  """Raises `UserError` for a file that has changed since it was found."""
  for file in files:
    if file.stamp and stamp(Path(file.path)) != file.stamp:
      raise UserError(f"{file.path}: changed while it was read; run the command again when nothing writes to it")


def stamp(path: Path) -> tuple[int, int]:
  """The size of a file and when it was written last; zeros for a file that is missing."""
  try:
    status = path.stat()
  except OSError:
    return 0, 0
  return status.st_size, status.st_mtime_ns


def single_text(files: list[TextFile]) -> TextFile | None:
  """The only text among these files, except for copies and empty files; None where there are several or none."""
  if any(file.split or is_json_lines(file.path) for file in files):
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
  read = last = end = 0  # where the last line with text begins, and where it ends
  for line in plain_text.lines(file.path):
    read += len(line)
    if line.strip():
      last, end = read - len(line), read
  kept = min((1 - heldout_fraction) * end, last)
  piece, size, read, number = [], 0, 0, 0
  for line in plain_text.lines(file.path):
    if read >= end:
      break  # the rest is blank
    ends_training = read < kept <= read + len(line)
    piece.append(line)
    size += len(line)
    read += len(line)
    if size >= plain_text.PIECE or ends_training:
      yield read - size >= kept, f"{file.name}#{number}", "".join(piece)
      piece, size, number = [], 0, number + 1
  if piece:
    yield read - size >= kept, f"{file.name}#{number}", "".join(piece)


def _whole(file: TextFile) -> Iterator[tuple[str, str]]:
  yield file.name, "".join(plain_text.blocks(file.path))


def _pieces(file: TextFile) -> Iterator[tuple[str, str]]:
  for number, piece in enumerate(plain_text.pieces(plain_text.blocks(file.path))):
    yield f"{file.name}#{number}", piece


def cut(lines: Iterable[str]) -> Iterator[str]:
  """A text, given as lines with their ends, as pieces that end at the first of them after `PIECE` characters."""
  piece, size = [], 0
  for line in lines:
    piece.append(line)
    size += len(line)
    if size >= plain_text.PIECE:
      yield from _shorter("".join(piece))
      piece, size = [], 0
  if piece:
    yield "".join(piece)


def _shorter(piece: str) -> Iterator[str]:
  """A piece, or several of them where a line of it is too long to be tokenized as a whole."""
  return iter([piece]) if len(piece) <= plain_text.LONGEST else plain_text.pieces([piece])


def identity(parts: Iterable[str]) -> str:
  """A hash of the words of a text, which is given in parts that end anywhere. White space has no influence."""
  digest, in_word = hashlib.blake2b(digest_size=16), False
  for part in parts:
    for start in range(0, len(part), plain_text.BLOCK):
      block = part[start : start + plain_text.BLOCK] if len(part) > plain_text.BLOCK else part
      if in_word and block[0].isspace():
        digest.update(b" ")
        in_word = False
      words = block.split()
      if words:
        in_word = not block[-1].isspace()
        digest.update(f"{' '.join(words)}{'' if in_word else ' '}".encode())
  if in_word:
    digest.update(b" ")
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
