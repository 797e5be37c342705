"""The table in the file `data.path`: .csv, .tsv or .parquet, also package:NAME/FILE of an installed package."""

import hashlib
import importlib.util
from pathlib import Path

import polars as pl

from bigmodel.config import Config, require
from bigmodel.data.sources import Source
from bigmodel.data.tables import RawTable, float32_features
from bigmodel.errors import UserError

PACKAGE = "package:"
SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL"]  # in CSV files


def read(data: Config) -> RawTable:
  """The table of the file; features are cast to float32 while it is read, which saves memory."""
  path = data.path
  file = _in_package(path) if path.startswith(PACKAGE) else Path(path)
  require(file.is_file(), f"config.data.path: no file {path!r}")
  require(file.suffix in SUFFIXES, f"config.data.path: {path} does not end in {', '.join(SUFFIXES)}")
  with open(file, "rb") as opened:
    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
  try:
    return RawTable(_frame(file, float32_features(data)), sha256)
  except (pl.exceptions.PolarsError, OSError) as error:
    raise UserError(f"config.data.path: {path} cannot be read: {str(error).strip().splitlines()[0]}") from error


def _frame(file: Path, casts: pl.Expr) -> pl.DataFrame:
  if file.suffix == ".parquet":
    return pl.scan_parquet(file).with_columns(casts).collect(engine="streaming").rechunk()
  try:
    return _scan_csv(file, 10_000).with_columns(casts).collect(engine="streaming").rechunk()
  except pl.exceptions.ComputeError:  # a cell does not have the type of the first rows
    return _scan_csv(file, None).with_columns(casts).collect(engine="streaming").rechunk()


def _scan_csv(file: Path, infer_schema_length: int | None) -> pl.LazyFrame:
  return pl.scan_csv(
    file,
    infer_schema_length=infer_schema_length,
    separator="\t" if file.suffix == ".tsv" else ",",
    try_parse_dates=True,
    low_memory=True,
    null_values=MISSING,
  )


def _in_package(path: str) -> Path:
  """The file of an installed package, from `package:NAME/FILE`."""
  name, _, inside = path.removeprefix(PACKAGE).partition("/")
  spec = importlib.util.find_spec(name) if name else None
  if spec is None or not spec.origin:
    raise UserError(f"config.data.path: package {name!r} is not installed")
  return Path(spec.origin).parent / inside


SOURCE = Source(read, needs_path=True, is_table=True)
