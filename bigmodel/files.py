"""Reading and writing small files, atomically and on any path that etils.epath opens."""

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel.errors import UserError

JsonObject = dict[str, Any]  # a JSON document when it is read or written; inside the package, facts have types


def remove(path: epath.PathLike) -> None:
  """Removes a file, or a folder with its content; does nothing where neither exists."""
  path = epath.Path(path)
  if path.exists():
    path.rmtree() if path.is_dir() else path.unlink()


def absolute(path: epath.PathLike) -> epath.Path:
  """The path, made absolute where it is local, as orbax requires; ~ at its beginning is the home folder."""
  path = epath.Path(path)
  return path if "://" in str(path) else epath.Path(os.path.abspath(os.path.expanduser(path)))


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file atomically: a reader sees either the old content or the new."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
  """Writes a file atomically, as `write_text` does."""
  path = epath.Path(path)
  with refused(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
      if "://" not in str(path):
        with open(temporary, "wb") as file:
          file.write(content)
          file.flush()
          os.fsync(file.fileno())
      else:
        temporary.write_bytes(content)
      temporary.replace(path)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise


@contextlib.contextmanager
def refused(path: epath.PathLike) -> Iterator[None]:
  """Turns a lack of permission to write `path` into a `UserError`; other errors, such as a full disk, pass.

  Making a folder in a file system that takes none, such as /proc, raises FileNotFoundError.
  """
  try:
    yield
  except (PermissionError, NotADirectoryError, FileExistsError, FileNotFoundError) as error:
    raise UserError(f"{path}: cannot write here ({error.strerror})") from error
  except OSError as error:
    if error.errno in (13, 30):
      raise UserError(f"{path}: cannot write here ({error.strerror})") from error
    raise


def write_json(path: epath.PathLike, value: object) -> None:
  """Writes a JSON document atomically, with sorted keys; NaN and infinity raise ValueError."""
  write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: epath.PathLike) -> Any:
  """The JSON document at `path`. Raises `UserError` for a file that is missing, unreadable or not JSON."""
  try:
    return json.loads(epath.Path(path).read_text())
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: is corrupt ({error}); delete it or restore it") from error


def read_json_object(path: epath.PathLike) -> JsonObject:
  """The JSON object at `path`. Raises `UserError` for any other content, as `read_json` does."""
  document = read_json(path)
  if not isinstance(document, dict):
    raise UserError(f"{path}: is corrupt (not a JSON object); delete it or restore it")
  return document


def write_jsonl(path: epath.PathLike, rows: Iterable[dict]) -> None:
  """Writes a JSON document per line, atomically."""
  write_text(path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: epath.PathLike) -> Iterator[dict]:
  """The rows of a JSONL file; an incomplete last line, left by an interrupted write, is dropped."""
  lines = epath.Path(path).read_text().splitlines()
  for index, line in enumerate(lines):
    try:
      yield json.loads(line)
    except ValueError as error:
      if index != len(lines) - 1:
        raise UserError(f"{path}: line {index + 1} is corrupt ({error})") from error


def sha256_text(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: epath.PathLike) -> str:
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def cache_dir() -> Path:
  """The folder of prepared data and compiled programs: $BIGMODEL_CACHE or ~/.cache/bigmodel."""
  return Path(os.environ.get("BIGMODEL_CACHE") or Path.home() / ".cache" / "bigmodel")


@contextlib.contextmanager
def only_one(name: str) -> Iterator[None]:
  """A lock named `name` among the processes of this machine; it is released when its holder exits."""
  folder = cache_dir() / "locks"
  with contextlib.ExitStack() as stack:
    try:
      with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(open(folder / name, "w", encoding="utf-8"))
        fcntl.flock(file, fcntl.LOCK_EX)
    except UserError:
      if not cache_dir().is_dir():
        raise
      # Nobody can write to this cache, such as a shared one: what is in it can be read without a lock.
    yield
