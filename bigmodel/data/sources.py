"""Where documents come from, before TFDS: files on this machine and their manifest."""

import dataclasses
import glob
import gzip
import hashlib
import importlib.metadata
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from bigmodel.files import UserError

DOCUMENT_BYTES = 1 << 16  # longer plain-text files are cut into documents of about this size
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
PACKED_SUFFIXES = (".gz", ".zst", ".xz")


@dataclasses.dataclass(frozen=True)
class Source:
  """One file: the split it belongs to ('' where its documents decide), its name and hash."""

  split: str
  name: str
  path: str
  sha256: str


def manifest_sha256(sources: list[Source], extra: str = "") -> str:
  """Identity of a corpus: names, contents and splits, but not where the files lie."""
  rows = sorted((source.split, source.name, source.sha256) for source in sources)
  return hashlib.sha256((json.dumps(rows) + extra).encode()).hexdigest()


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
  paths = [path for path in paths if path.is_file() and _suffix(path) in TEXT_SUFFIXES]
  if not paths:
    raise UserError(f"config.data.path: no .txt, .md or .jsonl file (plain, .gz, .zst, .xz) at {pattern!r}")
  base = root if root.is_dir() else Path(pattern).parent
  return [
    Source("", str(path.relative_to(base)) if path.is_relative_to(base) else path.name, str(path), _sha256(path))
    for path in paths
  ]


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


def documents(source: Source, text_key: str) -> Iterator[tuple[str, str]]:
  """`(name, text)` of each document of one file, in order."""
  try:
    yield from _documents(source, text_key)
  except UnicodeDecodeError as error:
    raise UserError(f"{source.path}: not UTF-8: {error.reason} ({error.object[error.start : error.end]!r})") from error


def _documents(source: Source, text_key: str) -> Iterator[tuple[str, str]]:
  path = Path(source.path)
  with _open(path) as file:
    if _suffix(path) == ".jsonl":
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        try:
          text = json.loads(line)[text_key]
        except (ValueError, KeyError, TypeError) as error:
          raise UserError(f"{path}:{number}: no JSON object with a field {text_key!r}") from error
        yield f"{source.name}#{number}", str(text)
      return
    if _suffix(path) == ".py":
      yield source.name, file.read()
      return
    part, size, start = [], 0, 0
    for line in file:
      part.append(line)
      size += len(line)
      if size >= DOCUMENT_BYTES:
        yield f"{source.name}#{start}", "".join(part)
        part, size, start = [], 0, start + 1
    if part:
      yield f"{source.name}#{start}", "".join(part)


def is_heldout(text: str, fraction: float) -> bool:
  """Whether a document is for evaluation: by its content, so that copies never straddle."""
  return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < fraction * 2**32
