"""Examples from tables: a row each, or windows of rows in the order of time."""

import dataclasses

import numpy as np
import polars as pl

from bigmodel.config import Config, require
from bigmodel.data import series, tables
from bigmodel.data.example_split import Split, divide
from bigmodel.data.fields import declared, has_numeric_targets
from bigmodel.data.normalisation import statistics
from bigmodel.data.sources import Arrays
from bigmodel.declarations import Value
from bigmodel.files import JsonObject

JUDGED = 100  # training rows of tables whose columns are judged by the number of their texts
MOST = 0.5  # a column is refused where more than this share of the training rows is `other`


@dataclasses.dataclass(frozen=True)
class _Columns:
  """A table whose target and special columns are arrays."""

  table: tables.Table
  targets: np.ndarray
  group: np.ndarray | None
  time: np.ndarray | None
  classes: tuple[str, ...]  # their names; empty for regression

  def card(self, encoded: tables.Encoded, features: list[str]) -> JsonObject:
    """The part of the data card about columns and steps."""
    steps = self.table.counts | encoded.counts
    notes = [*self.table.notes, *(f"column {name!r} has one value in all training rows" for name in encoded.constant)]
    card = {"features": features, "steps": steps, "learned": encoded.learned, "other": encoded.other}
    return card | {"notes": notes} if notes else card


def split(config: Config, raw: tables.RawTable) -> Split:
  """The examples of a table, cleaned, split and encoded as `config.data` describes."""
  data, is_regression = config.data, has_numeric_targets(config.task)
  table = tables.read(raw, data, is_regression)
  classes: tuple[str, ...] = ()
  if is_regression:
    is_numeric = table.target.dtype.is_numeric()
    require(
      is_numeric,
      f"config.data.target: {data.target!r} holds values such as {str(table.target[0])!r}, not numbers;"
      " the task classification predicts classes",
    )
    targets = table.target.cast(pl.Float64).to_numpy()
  else:
    targets, classes = tables.labels(table.target, tuple(data.classes))
  group = None if table.group is None else table.group.cast(pl.String).fill_null("").to_numpy()
  time = None if table.time is None else tables.moments(table.time)
  columns = _Columns(table, targets, group, time, classes)
  return _windows(config, columns) if data.window else _rows(config, columns)


def _rows(config: Config, columns: _Columns) -> Split:
  """Examples that are rows."""
  data, table = config.data, columns.table
  # The split does not depend on the inputs, and their encoding is fitted on the training rows.
  arrays = Arrays(
    np.zeros((len(columns.targets), 1)), columns.targets, columns.group, columns.time, None, columns.classes
  )
  train, heldout = divide(config, arrays)
  encoded = tables.encode(table, train, heldout, data, data.encode)
  _refuse_mostly_other(encoded, int(train.sum()), data)
  train = train & encoded.keep
  arrays = dataclasses.replace(arrays, inputs=encoded.inputs)
  mean, deviation = (np.full(encoded.inputs.shape[1], x, np.float32) for x in (0, 1))
  if encoded.numbers:
    numbers = encoded.inputs[:, : encoded.numbers]
    mean[: encoded.numbers], deviation[: encoded.numbers] = statistics(numbers, np.flatnonzero(train), data.normalise)
  facts: dict[str, Value] = {"categories": encoded.categories} if encoded.categories else {}
  missing = {name: count for name in table.features.columns if (count := table.features[name].null_count())}
  card = columns.card(encoded, encoded.names) | {"missing": missing}
  unused = int((~train & ~heldout & encoded.keep).sum())
  if unused:  # with a split by time
    card["notes"] = [*card.get("notes", ()), _about_periods(data, int(train.sum()), int(heldout.sum()), unused)]
  return Split(arrays, train, heldout, mean, deviation, table.sha256, facts, card)


def _about_periods(data: Config, training: int, heldout: int, unused: int) -> str:
  """A note about rows of later periods, which a split by time does not use."""
  more = f"; fold={data.folds - 1} uses all of them" if data.fold < data.folds - 1 else ""
  return (
    f"fold={data.fold} of {data.folds} by time trains on {training} rows and holds out the {heldout} rows after them;"
    f" the {unused} rows of later periods are not used{more}"
  )


def _windows(config: Config, columns: _Columns) -> Split:
  """Examples that are windows of rows; the target of each is `horizon` rows after its last row."""
  data, time, targets = config.data, columns.time, columns.targets
  require(time is not None, "config.data.time: empty; windows need the column that orders the rows")
  assert time is not None
  order = np.argsort(time, kind="stable")
  train, heldout = series.split(time[order], data.window, data.horizon, data.folds, data.fold)
  trained_rows = series.rows_seen(train, data.window, data.horizon)
  in_training = np.zeros(len(time), bool)  # rows of training windows and their targets
  in_training[order[:trained_rows]] = True
  in_heldout = np.zeros(len(time), bool)  # rows of held-out windows and their targets
  in_heldout[order[np.flatnonzero(heldout)[:, None] + np.arange(data.window)]] = True
  in_heldout[order[np.flatnonzero(heldout) + data.window - 1 + data.horizon]] = True
  encoded = tables.encode(columns.table, in_training, in_heldout, data, "one_hot")
  _refuse_mostly_other(encoded, trained_rows, data)
  require(bool(encoded.keep.all()), "config.data.steps: drop_outliers would leave gaps in windows; use clip")
  past_targets = targets[order][:, None].astype(np.float32)  # earlier targets are inputs for later ones
  rows = np.concatenate([past_targets, encoded.inputs[order]], axis=1)
  mean, deviation = statistics(rows, np.arange(trained_rows), data.normalise)
  windows = np.lib.stride_tricks.sliding_window_view(rows, data.window, axis=0).swapaxes(1, 2)[: len(train)]
  blocks = np.arange(len(train)) // (data.window + data.horizon)  # windows further apart than this share no row
  arrays = Arrays(windows, targets[order][data.window - 1 + data.horizon :], blocks, classes=columns.classes)
  card = columns.card(encoded, [data.target, *encoded.names])
  unused = len(time) - 1 - int(np.flatnonzero(in_heldout[order])[-1])
  if unused:
    card["notes"] = [*card.get("notes", ()), _about_periods(data, trained_rows, int(in_heldout.sum()), unused)]
  return Split(arrays, train, heldout, mean, deviation, columns.table.sha256, {}, card)


def _refuse_mostly_other(encoded: tables.Encoded, training: int, data: Config) -> None:
  """Refuses a column most of whose texts are too rare to be categories, unless the config sets limits of its own."""
  defaults = declared("examples")
  if training < JUDGED or any(
    data[name] != defaults[name].default for name in ("categories", "max_categories", "min_category_rows")
  ):
    return
  for name, facts in encoded.other.items():
    require(
      facts["training rows"] <= MOST * training,
      f"config.data.drop: column {name!r} has {facts['texts in training']} different texts in {training} training rows,"
      " most of them too rare to be categories; name it there, or accept this with data.categories=N, the number of"
      " categories to keep",
    )
