"""The table in the file `data.path`, see `readers.tables`; also package:NAME/FILE of an installed package."""

import importlib.util
from pathlib import Path

from bigmodel.config import Config, require
from bigmodel.data.sources import Source
from bigmodel.data.tables import RawTable, float32_features
from bigmodel.errors import UserError
from bigmodel.readers import packed, tables

PACKAGE = "package:"


def read(data: Config) -> RawTable:
  """The table of the file; features are cast to float32 while it is read, which saves memory."""
  path = data.path
  file = _in_package(path) if path.startswith(PACKAGE) else Path(path).expanduser()
  require(file.is_file(), f"config.data.path: no file {path!r}")
  kind = packed.suffix(file)
  require(kind in tables.SUFFIXES, f"config.data.path: {path} does not end in {', '.join(tables.SUFFIXES)}")
  try:
    found = tables.read(file, casts=float32_features(data))
  except UserError as error:
    raise UserError(f"config.data.path: {error}") from error
  lines = None if kind in tables.TYPED else found.all_lines()
  return RawTable(found.frame, found.sha256, found.decimal, found.notes, lines)


def _in_package(path: str) -> Path:
  """The file of an installed package, from `package:NAME/FILE`."""
  name, _, inside = path.removeprefix(PACKAGE).partition("/")
  spec = importlib.util.find_spec(name) if name else None
  if spec is None or not spec.origin:
    raise UserError(f"config.data.path: package {name!r} is not installed")
  return Path(spec.origin).parent / inside


SOURCE = Source(read, needs_path=True, is_table=True)
