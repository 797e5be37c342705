"""What a user defines in a file of their own and names as FILE.py:NAME.

In a config such a name is completed to PATH/FILE.py:NAME@HASH, where HASH is of the file's content. A run's id has
NAME@HASH in it: the same content is the same run wherever the file lies, and a file that has changed since is refused.
"""

import functools
import re
import sys
from pathlib import Path
from types import ModuleType

from bigmodel.config import nearest
from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.files import sha256_text

_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)(@(?P<hash>[0-9a-f]{12}))?")


# Where the file of a name and hash was found last: the file that a run's config names may have moved there.
_MOVED: dict[tuple[str, str | None], Path] = {}


def is_reference(name: str) -> bool:
  """Whether the name is FILE.py:NAME, with or without the hash."""
  return _REFERENCE.fullmatch(name) is not None


def complete(name: str, where: str) -> str:
  """FILE.py:NAME with the absolute path and the hash of the file's content; any other name is returned as it is.

  A missing file is refused, and so is one whose content is not what the name's hash says. `where` begins messages.
  """
  match = _REFERENCE.fullmatch(name)
  if match is None:
    return name
  path = Path(match["path"]).expanduser().resolve()
  moved = _MOVED.get((match["name"], match["hash"]), path)
  if moved != path and not _has_hash(path, match["hash"]) and _has_hash(moved, match["hash"]):
    path = moved
  found = sha256_text(_text_of(path, where))[:12]
  if match["hash"] and match["hash"] != found:
    raise UserError(f"{where}: {path} has changed: its content has hash {found}, the run was made with {match['hash']}")
  _MOVED[match["name"], found] = path
  return f"{path}:{match['name']}@{found}"


def _has_hash(path: Path, hash_: str | None) -> bool:
  return path.is_file() and sha256_text(path.read_text(encoding="utf-8"))[:12] == hash_


def load(name: str, where: str) -> object:
  """What FILE.py:NAME names. The same content gives the same object each time, so that compiled programs are reused."""
  match = _REFERENCE.fullmatch(complete(name, where))
  assert match is not None
  module = _execute(match["path"], _text_of(Path(match["path"]), where), where)
  if not hasattr(module, match["name"]):
    names = [one for one, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    near = nearest(match["name"], names)
    raise UserError(f"{where}: {match['path']} defines no {match['name']!r}{near}; it defines {', '.join(names)}")
  return getattr(module, match["name"])


def module_of(name: str, where: str) -> ModuleType:
  """The executed file of FILE.py:NAME."""
  match = _REFERENCE.fullmatch(complete(name, where))
  assert match is not None
  return _execute(match["path"], _text_of(Path(match["path"]), where), where)


def without_path(value: Value) -> Value:
  """NAME@HASH of a completed name; any other value as it is."""
  match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
  return f"{match['name']}@{match['hash']}" if match is not None and match["hash"] else value


def _text_of(path: Path, where: str) -> str:
  if not path.is_file():
    raise UserError(f"{where}: no file {str(path)!r}")
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: {path} is not text in UTF-8") from error


@functools.cache
def _execute(path: str, text: str, where: str) -> ModuleType:
  name = f"bigmodel_user_{Path(path).stem}_{sha256_text(text)[:12]}"
  module = ModuleType(name)
  module.__file__ = path
  sys.modules[name] = module  # dataclasses and pickle look there for the module of a class
  try:
    # Not by Python's own import, which may take an older version of the file from its cache of compiled files.
    exec(compile(text, path, "exec"), vars(module))
  except UserError:
    raise
  except Exception as error:
    del sys.modules[name]
    raise UserError(f"{where}: {path} does not load: {type(error).__name__}: {error}") from error
  return module
