"""Time series: windows of consecutive rows, split by time so that no training row is in a held-out window."""

import numpy as np

from bigmodel.config import require
from bigmodel.data import splits


def split(time: np.ndarray, window: int, horizon: int, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
  """Masks of the training and held-out windows; window i has rows i to i + window - 1 in the order of `time`.

  Its target is `horizon` rows after its last row. Held-out windows have their target in the held-out period and begin
  in it, or after the last row of training, so that no row is in both.
  """
  count = len(time) - window - horizon + 1
  require(count > 0, f"config.data.window: {len(time)} rows are fewer than a window of {window} and {horizon} more")
  before, period = splits.by_time(time, folds, fold)
  first = np.arange(count)
  target = first + window - 1 + horizon
  train, heldout = before[target], period[target] & ~before[first]
  where = f"config.data.window: of {window} rows and a horizon of {horizon}"
  require(bool(train.any()), f"{where}: no training window fits before the held-out period of fold {fold}")
  require(bool(heldout.any()), f"{where}: no held-out window fits in the period of fold {fold}")
  return train, heldout


def rows_seen(train: np.ndarray, window: int, horizon: int) -> int:
  """The number of rows, from the first one on, that training windows and their targets use."""
  return int(np.flatnonzero(train).max()) + window + horizon
