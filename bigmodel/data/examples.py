"""Examples: images or rows of a table with a target each, as arrays of two splits."""

import dataclasses
import gzip
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.config import Config, nearest, require
from bigmodel.files import UserError

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
IDX_TYPES = {
  8: np.uint8,
  9: np.int8,
  11: np.dtype(">i2"),
  12: np.dtype(">i4"),
  13: np.dtype(">f4"),
  14: np.dtype(">f8"),
}
SKLEARN = {"digits": "classification", "breast_cancer": "classification", "wine": "classification",
           "iris": "classification", "diabetes": "regression"}  # fmt: skip
Arrays = tuple[np.ndarray, np.ndarray]  # inputs, targets


@dataclasses.dataclass(frozen=True)
class Examples:
  """Inputs and targets of both splits; `mean` and `deviation` are of the training split, one a feature or channel."""

  sha256: str
  inputs: dict[str, np.ndarray]
  targets: dict[str, np.ndarray]  # class numbers, or numbers in units of their deviation in training
  mean: np.ndarray
  deviation: np.ndarray
  facts: dict[str, Any]
  card: dict[str, Any]

  def rows(self, split: str, places: np.ndarray) -> dict[str, np.ndarray]:
    """A batch: normalised inputs and their targets."""
    inputs = (self.inputs[split][places].astype(np.float32) - self.mean) / self.deviation
    return {"inputs": inputs, "targets": self.targets[split][places]}


def _read(data: Config, task: str) -> tuple[Arrays, Arrays, str]:
  """`(training examples, held-out examples, sha256)`."""
  heldout = None
  if data.name == "idx_images":
    folder = Path(data.path or FASHION_MNIST)
    train = _idx_split(folder, "train")
    heldout = _idx_split(folder, "t10k") if data.split == "own" else None
  else:
    train = _sklearn(data.name) if data.name.startswith("sklearn/") else _arrays(data.path)
  if heldout is None:
    (inputs, targets), stratified = train, data.split != "random" and task != "regression"
    where = folds_of(targets, data.folds, stratified) == data.fold
    train, heldout = ((inputs[take], targets[take]) for take in (~where, where))
  digest = hashlib.sha256()
  for array in (*train, *heldout):
    digest.update(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return train, heldout, digest.hexdigest()


def prepare(config: Config) -> Examples:
  """Reads and checks the examples of `config.data`."""
  data, task = config.data, config.task.name
  train, heldout, read = _read(data, task)
  sha256 = hashlib.sha256(f"{read} {data.normalise} {task}".encode()).hexdigest()
  require(
    data.sha256 in ("", sha256),
    f"config.data.sha256: the data here are {sha256[:12]}..., not {data.sha256[:12]}... (changed files)",
  )
  targets = {"train": train[1], "validation": heldout[1]}
  facts: dict[str, Any] = {"inputs": train[0].shape[1:], "outputs": 1}
  if task != "regression":
    classes = config.model.outputs or int(train[1].max()) + 1
    for split, labels in targets.items():
      _check_labels(split, labels, classes)
    targets = {split: labels.astype(np.int32) for split, labels in targets.items()}
    facts |= {"outputs": classes, "class_counts": np.bincount(targets["train"], minlength=classes).tolist()}
  else:
    center, scale = float(train[1].mean()), float(train[1].std())
    require(scale > 0, f"config.data: all {len(train[1])} training targets are {center}")
    targets = {split: ((y - center) / scale).astype(np.float32) for split, y in targets.items()}
    facts |= {"target_mean": center, "target_deviation": scale}
  mean, deviation = _statistics(train[0], data.normalise)
  card = {
    "name": data.name,
    "sha256": sha256,
    "inputs": list(facts["inputs"]),
    "splits": {split: {"examples": len(y)} for split, y in targets.items()},
    **{name: value for name, value in facts.items() if name != "inputs"},
  }
  inputs = {"train": train[0], "validation": heldout[0]}
  return Examples(sha256, inputs, targets, mean, deviation, facts, card)


def _statistics(inputs: np.ndarray, normalise: str) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation over training examples (and pixels); a feature that never changes keeps its scale."""
  if normalise == "none":
    return np.float32(0), np.float32(1)  # pyright: ignore[reportReturnType]
  if normalise == "unit":
    low, high = float(inputs.min()), float(inputs.max())
    return np.float32(low), np.float32((high - low) or 1)  # pyright: ignore[reportReturnType]
  axes = tuple(range(inputs.ndim - 1)) or 0
  mean = inputs.mean(axis=axes, dtype=np.float64)
  # In chunks: a float64 copy of all images would not fit beside them.
  squares = sum(np.square(part - mean).sum(axis=axes) for part in np.array_split(inputs, max(1, len(inputs) // 4096)))
  deviation = np.sqrt(squares / (inputs.size / np.size(mean)))
  return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def folds_of(targets: np.ndarray, folds: int, stratified: bool) -> np.ndarray:
  """The fold of each example, by a fixed shuffle; stratified ones have each class's share."""
  require(len(targets) >= folds, f"config.data.folds: {folds} folds of {len(targets)} examples")
  order = np.random.default_rng(0).permutation(len(targets))
  if stratified:
    order = order[np.argsort(targets[order], kind="stable")]
  fold = np.empty(len(targets), np.int64)
  fold[order] = np.arange(len(targets)) % folds
  return fold


def _check_labels(split: str, labels: np.ndarray, classes: int) -> None:
  whole = np.equal(np.mod(labels, 1), 0) & (labels >= 0) & (labels < classes)
  bad = np.flatnonzero(~whole)
  require(
    not len(bad),
    f"config.data: {split} example {bad[0] if len(bad) else 0} has the label {labels[bad[0]] if len(bad) else 0},"
    f" which is none of the {classes} classes 0 to {classes - 1}",
  )


def _idx_split(folder: Path, split: str) -> Arrays:
  require(folder.is_dir(), f"config.data.path: no folder {str(folder)!r} with IDX files")
  images, labels = (_idx(_find(folder, split, kind)) for kind in ("images", "labels"))
  require(
    len(images) == len(labels), f"config.data.path: {len(images)} {split} images and {len(labels)} labels in {folder}"
  )
  return (images[..., None] if images.ndim == 3 else images), labels


def _find(folder: Path, split: str, kind: str) -> Path:
  found = sorted(folder.glob(f"{split}-{kind}*"))
  require(bool(found), f"config.data.path: no {split}-{kind}* in {folder}")
  return found[0]


def _idx(path: Path) -> np.ndarray:
  """An array of Yann LeCun's IDX format, plain or .gz."""
  try:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
      raw = file.read()
  except (EOFError, OSError) as error:
    raise UserError(f"config.data.path: {path} cannot be read: {error}") from error
  kind = IDX_TYPES.get(raw[2]) if len(raw) >= 4 and raw[:2] == b"\0\0" else None
  require(kind is not None, f"config.data.path: {path} is no IDX file")
  shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).astype(int).tolist())
  wanted = 4 + 4 * raw[3] + math.prod(shape) * np.dtype(kind).itemsize
  require(len(raw) == wanted, f"config.data.path: {path} has {len(raw)} bytes, its header says {wanted}: truncated?")
  array = np.frombuffer(raw, kind, offset=4 + 4 * raw[3]).reshape(shape)
  return array.astype(array.dtype.newbyteorder("="))


def _sklearn(name: str) -> Arrays:
  set_ = name.removeprefix("sklearn/")
  require(set_ in SKLEARN, f"config.data.name: no {name!r}{nearest(set_, SKLEARN)}; known: {', '.join(SKLEARN)}")
  try:
    from sklearn import datasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("config.data.name: scikit-learn is not here; pip install 'bigmodel[metrics]'") from error
  load: Callable[..., Any] = getattr(datasets, f"load_{set_}")
  inputs, targets = load(return_X_y=True)
  return np.asarray(inputs, np.float32), np.asarray(targets)


def _arrays(path: str) -> Arrays:
  require(Path(path).is_file(), f"config.data.path: no file {path!r}")
  try:
    with np.load(path, allow_pickle=False) as file:
      missing = {"inputs", "targets"} - set(file.files)
      require(not missing, f"config.data.path: {path} has no array {' or '.join(sorted(missing))}")
      inputs, targets = file["inputs"], file["targets"]
  except (OSError, ValueError) as error:
    why = "its rows differ in shape" if "pickle" in str(error).lower() else str(error).splitlines()[0]
    raise UserError(f"config.data.path: {path} cannot be read: {why}") from error
  require(inputs.ndim >= 2, f"config.data.path: inputs of {path} have the shape {inputs.shape}; examples come first")
  require(
    targets.shape == (len(inputs),), f"config.data.path: {len(inputs)} inputs and targets of shape {targets.shape}"
  )
  for label, array in (("inputs", inputs), ("targets", targets)):
    require(array.dtype.kind in "biuf", f"config.data.path: {label} of {path} are no numbers but {array.dtype}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    require(not len(bad), f"config.data.path: {label} of example {bad[0] if len(bad) else 0} are not finite")
  return inputs, targets
