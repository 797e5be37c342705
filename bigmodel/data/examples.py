"""Examples: images, rows of a table or windows of a series with a target each, as arrays of two splits."""

import dataclasses
import hashlib
import json
import logging

import numpy as np

from bigmodel import user_files
from bigmodel.config import Config, require
from bigmodel.data import checks, sources, table_examples
from bigmodel.data.example_split import Split, divide, in_both
from bigmodel.data.fields import has_numeric_targets
from bigmodel.data.normalisation import black_and_white, statistics
from bigmodel.data.prepared import array_sha256
from bigmodel.data.sources import Arrays
from bigmodel.declarations import Value
from bigmodel.files import JsonObject, sha256_text

MUCH = 0.01  # a warning appears where more than this share of the held-out images is also in training
log = logging.getLogger("bigmodel")
# The fields of `config.data` that decide what is prepared, beside the files.
PREPARATION = (
  *("normalise", "split", "folds", "fold", "split_seed", "target", "drop", "group", "time", "classes", "steps"),
  *("encode", "max_categories", "min_category_rows", "window", "horizon"),
)
SHOWN = 5  # names of classes in a message
VERSION = 2  # increase it when examples are split or encoded in a way that makes other data of the same files


@dataclasses.dataclass(frozen=True)
class Examples:
  """Inputs and targets of both splits; `mean` and `deviation` are of the training split, per feature or channel."""

  sha256: str
  inputs: np.ndarray
  targets: np.ndarray  # class numbers, or numbers in units of their deviation in training
  places: dict[str, np.ndarray]  # the rows of each split
  mean: np.ndarray
  deviation: np.ndarray
  facts: dict[str, Value]  # what models and tasks take from their data
  card: JsonObject
  clusters: np.ndarray  # numbers of groups of dependent examples: their group, or windows that overlap

  def count(self, split: str) -> int:
    """The number of examples of a split."""
    return len(self.places[split])

  def rows(self, split: str, which: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of examples of a split: normalised inputs, float32, and their targets."""
    places = self.places[split][which]
    inputs = self.inputs[places].astype(np.float32)
    inputs -= self.mean
    inputs /= self.deviation
    return {"inputs": inputs, "targets": self.targets[places]}

  def shared_with(self, other: "Examples") -> "Examples":
    """These examples with the other's array of inputs if it is equal, as for two folds of the same arrays."""
    return dataclasses.replace(self, inputs=other.inputs) if _same(self.inputs, other.inputs) else self


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays are equal. Arrays on disk are compared by their file."""
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  if isinstance(a, np.memmap) and isinstance(b, np.memmap):
    return a.filename is not None and a.filename == b.filename and a.offset == b.offset
  return np.array_equal(a, b)


def prepare(config: Config, log_notes: bool = True) -> Examples:
  """Reads, splits and checks the examples of `config.data`."""
  data = config.data
  source = sources.find(data)
  read = sources.examples_of(data, source.read(data))
  if not isinstance(read, Arrays):
    return finish(config, table_examples.split(config, read))
  checks.refuse_table_fields(data)
  return of_source(config, read, log_notes)


def of_source(config: Config, arrays: Arrays, log_notes: bool = True) -> Examples:
  """Splits, normalises and checks examples that were read from `config.data` or come from elsewhere."""
  train, heldout = divide(config, arrays)
  mean, deviation = statistics(arrays.inputs, np.flatnonzero(train), config.data.normalise)
  is_image, has_features = arrays.inputs.ndim == 4, arrays.inputs.ndim == 2
  facts: dict[str, Value] = {}
  if is_image:
    facts |= black_and_white(arrays.inputs, np.flatnonzero(train), mean, deviation)
  card: JsonObject = {"features": int(arrays.inputs.shape[1]) if has_features else None}
  card |= {"passed over": dict(arrays.passed_over)} if arrays.passed_over else {}
  if arrays.notes:
    card["notes"] = list(arrays.notes)
    for note in arrays.notes if log_notes else ():
      log.warning("config.data: %s", note)
  return finish(config, Split(arrays, train, heldout, mean, deviation, _sha256(arrays), facts, card))


def _sha256(arrays: Arrays) -> str:
  by_name = {"targets": arrays.targets, "group": arrays.group, "time": arrays.time, "own": arrays.heldout}
  hashes = {name: array_sha256(array) for name, array in by_name.items() if array is not None}
  hashes["inputs"] = arrays.inputs_sha256 or array_sha256(arrays.inputs)
  return sha256_text(json.dumps([hashes, arrays.classes], sort_keys=True))


def finish(config: Config, split: Split) -> Examples:
  """Checks the targets and puts all together."""
  data, arrays = config.data, split.arrays
  places = {"train": np.flatnonzero(split.train), "validation": np.flatnonzero(split.heldout)}
  settings = {name: list(value) if isinstance(value := data[name], tuple) else value for name in PREPARATION}
  if data.categories:  # a later field: data that are prepared without it keep their name
    settings["categories"] = data.categories
  task, is_numeric = config.task.name, has_numeric_targets(config.task)
  if user_files.is_reference(task):  # the preparation depends on the kind of targets only
    task = "regression" if is_numeric else "classification"
  content = json.dumps([VERSION, split.sha256, task, settings])
  sha256 = hashlib.sha256(content.encode()).hexdigest()
  require(
    data.sha256 in ("", sha256),
    f"config.data.sha256: the data here are {sha256[:12]}..., not {data.sha256[:12]}... (changed files)",
  )
  facts: dict[str, Value] = {"inputs": arrays.inputs.shape[1:], **split.facts}
  card: JsonObject = {"inputs": list(arrays.inputs.shape[1:])}
  balance: dict[str, dict[str, list[int]]] = {name: {} for name in places}
  if is_numeric:
    targets, known = _scaled(arrays.targets, places["train"])
    facts |= {**known, "outputs": len(config.task.get("quantiles", ())) or 1}
  else:
    targets, counts = _class_numbers(config, arrays, places, len(arrays.classes))
    facts |= {"outputs": len(counts["train"]), "class_counts": tuple(counts["train"].tolist())}
    card |= {"classes": list(arrays.classes)} if arrays.classes else {}
    balance = {name: {"class_counts": count.tolist()} for name, count in counts.items()}
  card |= {
    "name": sources.label(data),
    "sha256": sha256,
    "bytes": int(arrays.inputs.nbytes) if not data.window else None,
    "splits": {name: {"examples": len(rows), **balance[name]} for name, rows in places.items()},
    **{name: value for name, value in facts.items() if name not in ("inputs", "class_counts")},
    **split.card,
    "mean": np.asarray(split.mean).tolist(),
    "deviation": np.asarray(split.deviation).tolist(),
  }
  if not data.window:
    both = card["splits"]["validation"]["inputs also in training"] = in_both(split)
    if arrays.inputs.ndim > 2 and both > MUCH * len(places["validation"]):
      log.warning("config.data: %d of %d held-out images are also training images", both, len(places["validation"]))
  alone = np.arange(len(targets))
  clusters = alone if arrays.group is None else np.unique(arrays.group, return_inverse=True)[1]
  return Examples(sha256, arrays.inputs, targets, places, split.mean, split.deviation, facts, card, clusters)


def _scaled(targets: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
  """Targets in units of their deviation in training, float32, and the facts that undo it."""
  center, scale = float(targets[train].mean()), float(targets[train].std())
  require(scale > 0, f"config.data: all {len(train)} training targets are {center}")
  return ((targets - center) / scale).astype(np.float32), {"target_mean": center, "target_deviation": scale}


def _class_numbers(
  config: Config, arrays: Arrays, places: dict[str, np.ndarray], named: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Checked class numbers, int32, and the examples of each class by split; `named` is the number of named classes."""
  targets = arrays.targets
  classes = config.model.outputs or named or int(targets[places["train"]].max()) + 1
  for name, rows in places.items():
    _check_labels(name, targets[rows], classes)
  require(classes > 1, f"config.data: all {len(targets)} targets are of one class")
  targets = targets.astype(np.int32)
  counts = {name: np.bincount(targets[rows], minlength=classes) for name, rows in places.items()}
  for name, count in counts.items():
    only = int(count.argmax())
    require(
      int((count > 0).sum()) > 1,
      f"config.data.fold: {config.data.fold}: all {name} examples are of class {only}; {_advice(config, arrays, only)}",
    )
  return targets, counts


def _advice(config: Config, arrays: Arrays, only: int) -> str:
  """What to do where a split has examples of the class `only` alone."""
  if config.data.split not in ("own", "stratified") or arrays.heldout is not None:
    return "use split=stratified"
  if arrays.identities is None:
    others = arrays.targets[arrays.targets != only].astype(np.int64)
    names = [repr(arrays.classes[i]) if arrays.classes else str(i) for i in np.unique(others)[:SHOWN]]
    return (
      f"the class{'es' * (len(names) > 1)} {', '.join(names)} ha{'ve' if len(names) > 1 else 's'} {len(others)}"
      f" example{'s' * (len(others) > 1)} in all, too few for {config.data.folds} folds"
    )
  different = len(np.unique(arrays.identities[arrays.targets != only]))
  return f"the other classes have {different:,} different images, and copies of an image stay in one split"


def _check_labels(split: str, labels: np.ndarray, classes: int) -> None:
  valid = np.equal(np.mod(labels, 1), 0) & (labels >= 0) & (labels < classes)
  bad = np.flatnonzero(~valid)
  require(
    not len(bad),
    f"config.data: {split} example {bad[0] if len(bad) else 0} has the label {labels[bad[0]] if len(bad) else 0},"
    f" which is not one of the {classes} classes 0 to {classes - 1}",
  )
