"""Finds the text files of a corpus: those of a file, a folder or a glob, and counts the files that are passed over."""

import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bigmodel.data.documents import JSON_SUFFIXES, TEXT_SUFFIXES, TextFile, stamp
from bigmodel.errors import UserError
from bigmodel.files import sha256_file
from bigmodel.readers import packed

HIDDEN, EMPTY, UNREADABLE = "hidden", "empty", "unreadable"
SPECIAL, LINKED = "not a regular file", "linked folder"
KINDS = "no .txt, .md or .jsonl file (also .ndjson; plain, .gz, .zst or .xz)"


class MissingFilesError(UserError):
  """Nothing is at the path of a corpus, which may have been moved."""


@dataclasses.dataclass(frozen=True)
class Found:
  """The text files that a pattern matches, and the number of other files by suffix or by why they are not read."""

  files: list[TextFile]
  passed_over: Mapping[str, int]


def find(pattern: str) -> Found:
  """The text files that `pattern` matches: a file, a folder or a glob."""
  try:
    return _find(pattern)
  except OSError as error:
    raise UserError(f"config.data.path: {error.filename or pattern} cannot be read ({error.strerror})") from error


def _find(pattern: str) -> Found:
  root, passed_over = Path(pattern).expanduser(), Counter[str]()
  if root.is_file():
    paths = [root]
  elif root.is_dir():
    paths = sorted(_in_folder(root, passed_over))
  else:
    paths = [path for path in _matches(str(root)) if not path.is_dir()]
  # A folder may hold all kinds of .json files, so that these are read only where the pattern names them.
  allowed = {*TEXT_SUFFIXES, *({packed.suffix(root)} & {*JSON_SUFFIXES})}
  chosen = [path for path in paths if _is_text(path, allowed, passed_over)]
  base = root if root.is_dir() else _folder_without_wildcards(root)
  files = [file for path in chosen if (file := _file(path, base, path == root, passed_over)) is not None]
  counted = dict(sorted(passed_over.items(), key=lambda item: (item[0][0] != ".", -item[1], item[0])))
  if not files:
    missing = MissingFilesError if not counted else UserError
    raise missing(f"config.data.path: {KINDS} at {pattern!r}; {_nothing(root, counted)}")
  return Found(files, counted)


def described(passed_over: Mapping[str, int]) -> str:
  """The counts as text: '3 .pdf, 1 .docx'."""
  return ", ".join(f"{count:,} {kind}" for kind, count in passed_over.items())


def _nothing(root: Path, passed_over: Mapping[str, int]) -> str:
  """Why there is no text file."""
  if not passed_over:
    return "the folder is empty" if root.is_dir() else "nothing is there"
  hints = {
    ".json": "JSON lines in .json files are read by a pattern that ends in .json",
    ".csv": "a table is read by data.name=table",
    ".parquet": "a table is read by data.name=table",
    UNREADABLE: "check who may read them",
  }
  hint = next((f"; {hint}" for kind, hint in hints.items() if kind in passed_over), "")
  return f"passed over: {described(passed_over)}{hint}"


def _in_folder(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
  """The files below a folder, except for hidden ones and those in linked folders, which may lead in circles."""
  try:
    with os.scandir(folder) as entries:
      inside = list(entries)
  except OSError:
    passed_over["unreadable folder"] += 1
    return
  for entry in inside:
    if entry.name.startswith("."):
      passed_over[HIDDEN] += 1
    elif entry.is_dir(follow_symlinks=False):
      yield from _in_folder(Path(entry.path), passed_over)
    elif entry.is_symlink() and os.path.isdir(entry.path):
      passed_over[LINKED] += 1
    else:
      yield Path(entry.path)


def _matches(pattern: str) -> list[Path]:
  """What a glob matches, sorted. Refuses ** where it would go in circles through linked folders."""
  if "**" in pattern:
    for folder, inside, _ in os.walk(_folder_without_wildcards(Path(pattern))):
      for path in (Path(folder, name) for name in inside):
        if _is_in_circle(path):
          raise UserError(
            f"config.data.path: {pattern!r} goes in circles through the linked folder {str(path)!r}; name the folder"
            " that holds the files, in which links are not followed"
          )
  return [Path(path) for path in sorted(set(glob.glob(pattern, recursive=True)))]


def _is_in_circle(folder: Path) -> bool:
  """Whether the folder is a link to one that holds the link."""
  return folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))


def _is_text(path: Path, allowed: Iterable[str], passed_over: Counter[str]) -> bool:
  try:
    regular = path.is_file()
  except OSError:
    passed_over[UNREADABLE] += 1
    return False
  if not regular:
    passed_over["broken link" if path.is_symlink() else SPECIAL] += 1
  elif packed.suffix(path) not in allowed:
    passed_over[_kind(path)] += 1
  else:
    return True
  return False


def _kind(path: Path) -> str:
  """The suffix of a file that is not read, with that of its compression."""
  compressed = path.suffix.lower() if path.suffix.lower() in packed.PACKED_SUFFIXES else ""
  return f"{packed.suffix(path)}{compressed}" or "without suffix"


def _file(path: Path, base: Path, is_named: bool, passed_over: Counter[str]) -> TextFile | None:
  """A text file with its hash, or None for a file that cannot be read, which is refused where the user named it."""
  before = stamp(path)
  try:
    sha256 = sha256_file(path)
  except OSError as error:
    if is_named:
      raise UserError(f"config.data.path: {path} cannot be read ({error.strerror})") from error
    passed_over[UNREADABLE] += 1
    return None
  if not before[0]:
    passed_over[EMPTY] += 1
  # Names of other encodings than UTF-8 have bytes that no text can hold.
  name = os.fsencode(path.relative_to(base)).decode("utf-8", "backslashreplace")
  return TextFile("", name, str(path), sha256, before)


def _folder_without_wildcards(pattern: Path) -> Path:
  """The last folder above all wildcards, so that names relative to it are unique."""
  folder = pattern.parent
  while glob.has_magic(str(folder)):
    folder = folder.parent
  return folder
