"""Splits without leaks: random, stratified, by group, or by time. Of `folds` parts, number `fold` is held out."""

import dataclasses

import numpy as np

from bigmodel.config import require

SPLITS = ("own", "stratified", "random", "group", "time")


@dataclasses.dataclass(frozen=True)
class Folds:
  """How examples are divided: a kind of `SPLITS` except own, the number of folds, the held-out one, and a seed."""

  kind: str
  count: int
  heldout: int
  seed: int = 0


def split(
  folds: Folds, targets: np.ndarray, group: np.ndarray | None, time: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """`(training, held-out)` as masks over the rows; `group` and `time` are needed by the kinds of these names."""
  require(len(targets) >= folds.count, f"config.data.folds: {folds.count} folds of {len(targets)} examples")
  if folds.kind == "time":
    assert time is not None
    return by_time(time, folds.count, folds.heldout)
  if folds.kind == "group":
    assert group is not None
    heldout = by_group(group, folds.count, folds.seed) == folds.heldout
  else:
    heldout = folds_of(targets, folds.count, folds.kind == "stratified", folds.seed) == folds.heldout
  return ~heldout, heldout


def folds_of(targets: np.ndarray, folds: int, stratified: bool, seed: int = 0) -> np.ndarray:
  """The fold of each example, by a seeded shuffle. Stratified folds have equal shares of each class."""
  order = np.random.default_rng(seed).permutation(len(targets))
  if stratified:
    order = order[np.argsort(targets[order], kind="stable")]
  fold = np.empty(len(targets), np.int64)
  fold[order] = np.arange(len(targets)) % folds
  return fold


def by_group(group: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
  """The fold of each example. A group lies in one fold, and the folds are as even as large groups allow."""
  names, index, sizes = np.unique(group, return_inverse=True, return_counts=True)
  require(len(names) >= folds, f"config.data.folds: {folds} folds of {len(names)} groups")
  order = np.random.default_rng(seed).permutation(len(names))
  order = order[np.argsort(-sizes[order], kind="stable")]
  fold_of_group, filled = np.empty(len(names), np.int64), np.zeros(folds, np.int64)
  for name in order:
    fold = int(np.argmin(filled))
    fold_of_group[name], filled[fold] = fold, filled[fold] + sizes[name]
  return fold_of_group[index]


def by_time(time: np.ndarray, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
  """Masks of the training and held-out rows: period `fold + 1` of `folds + 1` is held out, and training is before it.

  The periods have equal numbers of rows; rows with equal times are in the same period.
  """
  ordered = np.sort(time)
  cuts = [ordered[(len(time) * (i + 1)) // (folds + 1)] for i in range(fold, min(fold + 2, folds))]
  train = time < cuts[0]
  heldout = (time >= cuts[0]) & ((time < cuts[1]) if len(cuts) > 1 else True)
  where = f"config.data.fold: {fold} of {folds} by time"
  require(bool(train.any()), f"{where}: nothing lies before {cuts[0]}; too many rows have the same time")
  require(bool(heldout.any()), f"{where}: the period from {cuts[0]} is empty; too many rows have the same time")
  return train, heldout
