"""Splits that do not leak: random, stratified, by group, by time; of `folds` parts, `fold` is held out."""

import numpy as np

from bigmodel.config import require

SPLITS = ("own", "stratified", "random", "group", "time")


def split(
  kind: str, folds: int, fold: int, seed: int, targets: np.ndarray, group: np.ndarray | None, time: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """`(training, held-out)` as masks over the rows."""
  require(len(targets) >= folds, f"config.data.folds: {folds} folds of {len(targets)} examples")
  if kind == "time":
    assert time is not None
    return by_time(time, folds, fold)
  if kind == "group":
    assert group is not None
    heldout = by_group(group, folds, seed) == fold
  else:
    heldout = folds_of(targets, folds, kind == "stratified", seed) == fold
  return ~heldout, heldout


def folds_of(targets: np.ndarray, folds: int, stratified: bool, seed: int = 0) -> np.ndarray:
  """The fold of each example, by a shuffle of this seed; stratified ones have each class's share."""
  order = np.random.default_rng(seed).permutation(len(targets))
  if stratified:
    order = order[np.argsort(targets[order], kind="stable")]
  fold = np.empty(len(targets), np.int64)
  fold[order] = np.arange(len(targets)) % folds
  return fold


def by_group(group: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
  """The fold of each example; a group is in one fold, and folds are as even as large groups allow."""
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
  """Of folds + 1 periods with as many rows each, number fold + 1 is held out and all before it is trained on.

  Rows of one moment are in one period.
  """
  ordered = np.sort(time)
  cuts = [ordered[(len(time) * (i + 1)) // (folds + 1)] for i in range(fold, min(fold + 2, folds))]
  train = time < cuts[0]
  heldout = (time >= cuts[0]) & ((time < cuts[1]) if len(cuts) > 1 else True)
  where = f"config.data.fold: {fold} of {folds} by time"
  require(bool(train.any()), f"{where}: nothing lies before {cuts[0]}; too many rows share a moment")
  require(bool(heldout.any()), f"{where}: the period from {cuts[0]} is empty; too many rows share a moment")
  return train, heldout
