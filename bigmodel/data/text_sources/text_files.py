"""Text files at `data.path`: texts or JSON lines, plain or compressed; `data.heldout_fraction` of them is held out."""

from collections import Counter

from bigmodel.config import Config, require
from bigmodel.data import builders, corpus_files
from bigmodel.data import documents as texts
from bigmodel.data.documents import TextFile
from bigmodel.data.sources import Documents, Source
from bigmodel.errors import UserError


def check(data: Config) -> None:
  """Refuses an empty path."""
  require(bool(data.path), "config.data.path: empty; give a path or glob of .txt, .md or .jsonl files")


def read(data: Config) -> Documents:
  """The documents: a line of JSON is one, and so is any other file."""
  found = corpus_files.find(data.path)
  files = found.files
  # In a mixture, another part may hold the same document, which then must not be divided.
  single = None if data.mixture else texts.single_text(files)
  settings = (data.name, data.heldout_fraction, data.text_key, single is not None)

  def empty(split: str) -> UserError:
    return _empty(data, files, single is not None, split)

  generate = builders.FileTexts(files, data.text_key, data.heldout_fraction, single)
  sha256 = texts.manifest_sha256(files, *settings)
  return builders.documents(data, sha256, generate, empty, generate.skipped, found.passed_over)


def _empty(data: Config, files: list[TextFile], is_single: bool, split: str) -> UserError:
  skipped = Counter[str]()
  identities = {document.identity for file in files for document in texts.documents(file, data.text_key, skipped)}
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
  counts = "".join(f"; {name}: {count:,}" for name, count in skipped.items())
  error = texts.empty_split("config.data.path", data.path, shares, data.heldout_fraction, split)
  return UserError(f"{error}{counts}")


SOURCE = Source(read, check)
