"""The folders of checkpoints on disk: temporary, complete and removed ones."""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable

import numpy as np
from etils import epath

from bigmodel import processes
from bigmodel.files import remove
from bigmodel.parallel import hosts
from bigmodel.train.checkpoint import integrity

COMMIT_TRIES = 10
REMOVE_TRIES = 3
ABANDONED_SECONDS = 24 * 3600.0  # without a change by a writer on another machine, after which it is considered dead


def temporary_name(step: int) -> str:
  """A name that no other save of any writer has; the same in all processes of a job."""
  return hosts.share(f".{step}.{processes.this_process()}.{uuid.uuid4().hex[:12]}")


def complete_steps(folder: epath.Path) -> list[int]:
  """The steps on disk, oldest first, damaged or not."""
  if not folder.exists():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit())


def check_space(folder: epath.Path, arrays: Iterable[np.ndarray]) -> None:
  """Raises ENOSPC if the arrays and their metadata would not fit on the disk. Orbax reports that late."""
  if "://" in str(folder):
    return  # an object store does not fill up
  sizes = [array.nbytes for array in arrays]
  needed = 1.1 * sum(sizes) + 1024 * len(sizes) + (1 << 16)
  if shutil.disk_usage(folder).free < needed:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_full(error: Exception) -> bool:
  """Whether an error says that the disk is full; orbax wraps such errors."""
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    return True
  return any(text in str(error) for text in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"))


def commit(temporary: epath.Path, target: epath.Path) -> None:
  """Renames a complete checkpoint to `target`, replacing a checkpoint of that name unless it is the same."""
  for _ in range(COMMIT_TRIES):
    try:
      temporary.rename(target)  # fails where a checkpoint is there
      return
    except OSError as error:
      if not target.exists():
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer has removed it since
          continue
        raise
    if integrity.same_content(target, temporary):
      discard(temporary)
      return
    replaced = temporary.with_name(f"{temporary.name}.replaced")
    with contextlib.suppress(FileNotFoundError):  # another writer was faster
      target.rename(replaced)
    try:
      temporary.rename(target)
      discard(replaced)
      return
    except OSError:
      if replaced.exists() and not target.exists():
        replaced.rename(target)
        raise
      discard(replaced)
  raise OSError(f"{target} was replaced by others {COMMIT_TRIES} times")


def is_abandoned(temporary: epath.Path) -> bool:
  """Whether the writer of a temporary folder has certainly ended, or has changed nothing in it for a day."""
  parts = temporary.name.split(".")
  if len(parts) > 2 and processes.has_certainly_ended(parts[2]):
    return True
  if len(parts) > 2 and parts[2] == processes.this_process():
    return False
  try:
    changed = max(path.stat().mtime for path in (temporary, *map(temporary.joinpath, files(temporary))))
  except FileNotFoundError:  # it is in use, or being removed
    return False
  return time.time() - changed > ABANDONED_SECONDS


def discard(folder: epath.Path) -> None:
  """Removes a checkpoint or temporary folder; others may do the same, and readers never see half of a checkpoint."""
  if not hosts.is_first():
    return
  hidden = folder
  if folder.name.isdigit():
    hidden = folder.parent / f".{folder.name}.{processes.this_process()}.{uuid.uuid4().hex[:12]}.removed"
    try:
      folder.rename(hidden)
    except FileNotFoundError:
      return
  for _ in range(REMOVE_TRIES):  # a writer may add files meanwhile
    try:
      remove(hidden)
      return
    except OSError:
      continue


def writer_of(file: str) -> int:
  """The index of the process that wrote a file. Each has a folder for its data; the first writes all other files."""
  match = re.match(r"arrays/ocdbt\.process_(\d+)/", file)
  return int(match[1]) if match else 0


def files(folder: epath.Path) -> list[str]:
  """Every file below `folder` but the seal, by its relative name."""
  names = []
  for path in folder.iterdir():
    if path.is_dir():
      names += [f"{path.name}/{name}" for name in files(path)]
    elif path.name != integrity.SEAL:
      names.append(path.name)
  return sorted(names)
