"""Text files at `data.path`: .txt, .md or .jsonl, plain or compressed; `data.heldout_fraction` of them is held out."""

import glob
from pathlib import Path

from bigmodel.config import Config, require
from bigmodel.data import builders
from bigmodel.data import documents as texts
from bigmodel.data.documents import TEXT_SUFFIXES, TextFile
from bigmodel.data.sources import Documents, Source
from bigmodel.errors import UserError
from bigmodel.files import sha256_file


def check(data: Config) -> None:
  """Refuses an empty path."""
  require(bool(data.path), "config.data.path: empty; give a path or glob of .txt, .md or .jsonl files")


def read(data: Config) -> Documents:
  """The documents: a line of a .jsonl file is one, and so is any other file."""
  files = text_files(data.path)
  # In a mixture, another part may hold the same document, which then must not be divided.
  single = None if data.mixture else texts.single_text(files)
  settings = (data.name, data.heldout_fraction, data.text_key, single is not None)

  def empty(split: str) -> UserError:
    return _empty(data, files, single is not None, split)

  generate = builders.FileTexts(files, data.text_key, data.heldout_fraction, single)
  return builders.documents(data, texts.manifest_sha256(files, *settings), generate, empty)


def _empty(data: Config, files: list[TextFile], is_single: bool, split: str) -> UserError:
  identities = {document.identity for file in files for document in texts.documents(file, data.text_key)}
  shares = {texts.heldout_share(identity) for identity in identities - {texts.identity([])}}
  if is_single:
    return UserError(
      f"config.data.path: {data.path} is one document with too few lines to hold out its end (heldout_fraction ="
      f" {data.heldout_fraction}); give more text, or several files"
    )
  if len(shares) == 1:
    return UserError(
      f"config.data.path: {data.path} holds one document, which is not divided between training and evaluation in a"
      " mixture or a .jsonl file; give several files, or a .jsonl file with a document per line"
    )
  return texts.empty_split("config.data.path", data.path, shares, data.heldout_fraction, split)


def text_files(pattern: str) -> list[TextFile]:
  """The text files that `pattern` matches: a file, a folder or a glob."""
  root = Path(pattern)
  paths = sorted(root.rglob("*")) if root.is_dir() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
  # A pattern with ** in it may match a file twice.
  paths = [path for path in dict.fromkeys(paths) if path.is_file() and texts.suffix(path) in TEXT_SUFFIXES]
  if not paths:
    raise UserError(f"config.data.path: no .txt, .md or .jsonl file (plain, .gz, .zst, .xz) at {pattern!r}")
  base = root if root.is_dir() else _folder_without_wildcards(root)
  return [TextFile("", str(path.relative_to(base)), str(path), sha256_file(path)) for path in paths]


def _folder_without_wildcards(pattern: Path) -> Path:
  """The last folder above all wildcards, so that names relative to it are unique."""
  folder = pattern.parent
  while glob.has_magic(str(folder)):
    folder = folder.parent
  return folder


SOURCE = Source(read, check)
