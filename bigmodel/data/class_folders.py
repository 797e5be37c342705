"""Finds the pictures in folders of classes, and the split where folders at the top are called train and test."""

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bigmodel.config import require
from bigmodel.errors import UserError
from bigmodel.readers import pictures

# The names that the folders of a split may have, in lower case.
TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "evaluation", "eval")
TEST = ("test", "testing")
# Files and folders that other programs leave, in lower case; as are all whose name begins with a dot.
HIDDEN = (
  *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "__pycache__", "icon\r"),
  "system volume information",
)
SUFFIXES = ", ".join(pictures.SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Found:
  """A picture: its file, whether it is held out, and the name of its class."""

  file: Path
  heldout: bool
  label: str


@dataclasses.dataclass(frozen=True)
class Contents:
  """The pictures of a folder in order, and how many other files there are by suffix or reason."""

  found: list[Found]
  has_split: bool
  passed_over: Mapping[str, int]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Parts:
  """The folders that hold the folders of the classes, with whether they are held out; and the unused ones."""

  used: list[tuple[Path, bool]]
  unused: list[Path] = dataclasses.field(default_factory=list)
  notes: tuple[str, ...] = ()


def find(root: Path) -> Contents:
  """The pictures below a folder. Raises `UserError` for classes that are empty, alone or ambiguous."""
  hint = f": {str(root)!r} is a file; unpack it" if os.path.isfile(root) else f" {str(root)!r}"
  require(os.path.isdir(root), f"config.data.path: no folder{hint}")
  parts, passed_over = _parts(root), Counter[str]()
  for folder in {root, *(part for part, _ in parts.used)}:
    passed_over += _beside(folder)
  for folder in parts.unused:
    others = Counter[str]()
    passed_over[f"in {folder.name}"] += len(list(_files(folder, others))) + others.total()
  found: list[Found] = []
  for part, heldout in parts.used:
    found += _in_classes(part, heldout, passed_over)
  notes = (*parts.notes, *_check_classes(found, root, len(parts.used) > 1))
  return Contents(found, len(parts.used) > 1, dict(sorted(passed_over.items())), notes)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
  try:
    with os.scandir(folder) as entries:
      return sorted(entries, key=lambda entry: entry.name)
  except OSError as error:
    raise UserError(f"config.data.path: the folder {folder} cannot be read ({error.strerror})") from error


def _is_hidden(name: str) -> bool:
  return name.startswith(".") or name.lower() in HIDDEN


def _is_folder(entry: os.DirEntry[str]) -> bool:
  """Whether it is a folder, or a link to one, that is not hidden."""
  is_folder = entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
  return is_folder and not _is_hidden(entry.name)


def _is_picture(entry: os.DirEntry[str]) -> bool:
  if not pictures.is_picture(entry.name) or _is_hidden(entry.name):
    return False
  if entry.is_symlink():  # a link to a missing file is refused when it is read
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)
  return entry.is_file()


def _folders(folder: Path) -> list[Path]:
  return [Path(entry.path) for entry in _entries(folder) if _is_folder(entry)]


def _reason(name: str) -> str:
  """Under which name a file that is not read is counted."""
  return "hidden" if _is_hidden(name) else Path(name).suffix.lower() or "without suffix"


def _beside(folder: Path) -> Counter[str]:
  """The files beside folders of classes, by suffix or reason."""
  others = [entry for entry in _entries(folder) if not _is_folder(entry)]
  return Counter("outside of a class" if _is_picture(entry) else _reason(entry.name) for entry in others)


def _files(folder: str | Path, passed_over: Counter[str], above: Sequence[tuple[int, int]] = ()) -> Iterator[Path]:
  """The pictures below a folder, through links; all other files are counted in `passed_over`."""
  facts = os.stat(folder)
  here = (facts.st_dev, facts.st_ino)
  if here in above:
    passed_over["links to a folder above"] += 1
    return
  for entry in _entries(folder):
    if _is_folder(entry):
      yield from _files(entry.path, passed_over, (*above, here))
    elif _is_picture(entry):
      yield Path(entry.path)
    else:
      passed_over[_reason(entry.name)] += 1


def _has_pictures(folder: Path) -> bool:
  return any(True for _ in _files(folder, Counter()))


def _parts(root: Path) -> _Parts:
  """The split, where the folders at the top are one."""
  tops = _folders(root)

  def named(names: Sequence[str]) -> list[Path]:
    return [path for path in tops if path.name.lower() in names]

  train, validation, test = named(TRAIN), named(VALIDATION), named(TEST)
  others = [path for path in tops if path not in (*train, *validation, *test)]
  if not train:
    _check_no_split(root, others, [*validation, *test])
    return _Parts([(root, False)])
  for folders in (train, validation, test if not validation else []):
    require(
      len(folders) < 2,
      f"config.data.path: {root} has {_listed(folders)}, which are the same part of a split; rename or join them",
    )
  extra = [path for path in others if _has_pictures(path)]
  require(
    not extra,
    f"config.data.path: {root} has {train[0].name} beside {_listed(extra)}: folders called train and test (or"
    " validation) are a split, and then no other folder may have pictures; rename them if they are classes",
  )
  heldout = (validation or test)[:1]
  notes = []
  if not heldout:
    notes.append(f"{root} has {train[0].name} and no folder that is held out; data.split divides it")
  elif validation and test:
    notes.append(f"{heldout[0].name} is held out; {_listed(test)} is left alone")
  used = [(train[0], False), *((path, True) for path in heldout)]
  return _Parts(used, [*others, *(test if validation else [])], tuple(notes))


def _check_no_split(root: Path, others: Sequence[Path], split: Sequence[Path]) -> None:
  """Refuses folders that look like a split and cannot be used as one."""
  require(bool(others) or not split, f"config.data.path: {root} has {_listed(split)} and no folder called train")
  words = [set(re.split(r"[^a-z]+", path.name.lower())) for path in others]
  is_split = any(word & {*TRAIN} for word in words) and all(word & {*TRAIN, *VALIDATION, *TEST} for word in words)
  require(
    not is_split,
    f"config.data.path: {_listed(others)} in {root} look like a split and not like classes; rename them to train and"
    " test, or give the path of one of them",
  )


def _in_classes(part: Path, heldout: bool, passed_over: Counter[str]) -> list[Found]:
  """The pictures in the folders of classes of a part. Raises `UserError` for a folder without one."""
  folders = _folders(part)
  files: list[list[Path]] = []
  empty: list[str] = []
  for folder in folders:
    skipped = Counter[str]()
    files.append(list(_files(folder, skipped)))
    passed_over += skipped
    if not files[-1]:
      empty.append(
        f"{folder} has no picture" + (f" but files that are not read ({written(skipped)})" if skipped else "")
      )
  if not any(files):
    flat = sum(map(_is_picture, _entries(part)))
    where = f"; {flat} lie outside of such folders" if flat else f"; {empty[0]}" if empty else ""
    advice = "; the path of the training folder alone divides it by data.split" if heldout else ""
    raise UserError(f"config.data.path: no picture ({SUFFIXES}) in a folder of its class in {part}{where}{advice}")
  require(
    not empty,
    f"config.data.path: {empty[0] if empty else ''}; each folder in {part} is a class: remove it or add pictures"
    f" ({SUFFIXES})",
  )
  found = [Found(file, heldout, folder.name) for folder, inside in zip(folders, files, strict=True) for file in inside]
  return sorted(found, key=lambda picture: picture.file)


def _check_classes(found: Sequence[Found], root: Path, has_split: bool) -> tuple[str, ...]:
  """Returns notes about the classes. Raises `UserError` where one is ambiguous, alone or not trained on."""
  train, heldout = ({one.label for one in found if one.heldout == held} for held in (False, True))
  _check_names(sorted(train | heldout), root)
  if len(train | heldout) == 1:
    only = found[0].label
    top = next(path for path in found[0].file.parents if path.name == only)
    inside = _folders(top)
    hint = f"; if the {len(inside)} folders in it are the classes, use config.data.path={top}" if inside else ""
    raise UserError(f"config.data.path: all {len(found)} pictures in {root} are of one class, {only!r}{hint}")
  untrained, unchecked = sorted(heldout - train), sorted(train - heldout)
  require(
    not untrained,
    f"config.data.path: {root} holds out pictures of {_few(untrained)}, of which there are none to train on",
  )
  if has_split and unchecked:
    return (f"no picture is held out of {len(unchecked)} of {len(train)} classes: {_few(unchecked)}",)
  return ()


def _check_names(names: Sequence[str], root: Path) -> None:
  by_plain_name: dict[str, str] = {}
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise UserError(f"config.data.path: the name of the folder {os.fsencode(name)!r} is not UTF-8") from error
    plain = unicodedata.normalize("NFC", name).strip().casefold()
    other = by_plain_name.setdefault(plain, name)
    require(
      other == name,
      f"config.data.path: the classes {other!r} and {name!r} in {root} differ only in case, blanks or the encoding of"
      " accents; rename one of them",
    )


def _few(names: Sequence[str]) -> str:
  return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _listed(folders: Sequence[Path]) -> str:
  return _few([path.name for path in folders])


def written(counts: Mapping[str, int]) -> str:
  """Counts by suffix or reason, as text."""
  return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
