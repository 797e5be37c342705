"""Time series: windows of consecutive rows, and a split by time in which no window sees what it is asked."""

import numpy as np

from bigmodel.config import require
from bigmodel.data import splits


def split(time: np.ndarray, window: int, horizon: int, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
  """Masks over windows, in the order of time; window i has rows i to i + window - 1, and the target `horizon` later.

  Held-out windows are those whose target lies in the held-out period and that begin there or
  later than the last row that training touches: no row is in both.
  """
  count = len(time) - window - horizon + 1
  require(count > 0, f"config.data.window: {len(time)} rows are less than a window of {window} and {horizon} more")
  before, period = splits.by_time(time, folds, fold)
  first = np.arange(count)
  answer = first + window - 1 + horizon
  train, heldout = before[answer], period[answer] & ~before[first]
  where = f"config.data.window: of {window} rows and a horizon of {horizon}"
  require(bool(train.any()), f"{where}: no training window fits before the held-out period of fold {fold}")
  require(bool(heldout.any()), f"{where}: no held-out window fits in the period of fold {fold}")
  return train, heldout


def rows_seen(train: np.ndarray, window: int, horizon: int) -> int:
  """The rows, from the first one on, that training windows and their targets touch."""
  return int(np.flatnonzero(train).max()) + window + horizon
