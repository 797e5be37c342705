"""The training curves of runs in their folders, for laws of the schedule.

Runs of one model and one batch size belong together, such as a trunk and its branches: the rows of a branch begin with
those of its trunk, so that one trunk gives several horizons. Losses that several curves share are taken once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from etils import epath

from bigmodel import files, record
from bigmodel.errors import UserError
from bigmodel.laws.schedules import curves
from bigmodel.laws.schedules.curves import Curve
from bigmodel.record import Branch

LOSS, EVALUATED = "loss", "loss_eval"  # of training batches, and on held-out data at evaluations


def read(folders: Sequence[epath.PathLike], loss: str = LOSS) -> list[Curve]:
  """The curve of each run's folder, named by its folder; `loss` is a field of its metrics.

  Raises `UserError` for a folder without metrics, and for a run without this loss or without a learning rate.
  """
  return once([curve(epath.Path(folder), loss) for folder in folders], folders)


def curve(folder: epath.Path, loss: str, rates: np.ndarray | None = None) -> Curve:
  """The curve of one run. `rates` are those of all steps of the run, or of more; by default they are read, too."""
  rows = [row for row in _rows(folder) if isinstance(row.get("lr"), int | float)]
  if not rows:
    raise UserError(f"{folder}: its metrics have no learning rate (lr); is this the folder of a run that has trained?")
  steps = np.array([row["step"] for row in rows], np.int64)
  if rates is None:
    logged = np.array([row["lr"] for row in rows], np.float64)
    curves.check_gaps(str(folder), steps, logged)
    rates = curves.schedule(steps, logged)
  losses = np.array([_number(row.get(loss)) for row in rows])
  if loss == EVALUATED and (ended := record.read(folder)) is not None and ended.steps == steps[-1]:
    losses[-1] = _number(ended.loss_eval)  # the last evaluation is not among the metrics
  given = np.isfinite(losses) & (losses > 0)
  if not given.any():
    raise UserError(f"{folder}: none of its {len(rows)} rows of metrics has {loss}")
  return Curve(folder.name, steps[given], losses[given], rates[: steps[-1] + 1], int(steps[0]))


def once(found: Sequence[Curve], folders: Sequence[epath.PathLike]) -> list[Curve]:
  """The curves of runs in `folders`, without losses of branches that are those of their trunk among the curves."""
  of_trunks = {each.name: each for each in found}
  kept = []
  for each, folder in zip(found, folders, strict=True):
    branch = _branch(epath.Path(folder))
    after = each.steps > branch.step
    trunk = of_trunks.get(branch.trunk)
    if trunk is not None and after.any():
      each = dataclasses.replace(each, steps=each.steps[after], loss=each.loss[after])
      of_trunks[branch.trunk] = dataclasses.replace(trunk, shared=max(trunk.shared, branch.step))
    kept.append(each)
  return [dataclasses.replace(each, shared=of_trunks[each.name].shared) for each in kept]


def has_rows(folder: epath.Path) -> bool:
  """Whether a run has metrics with a loss of training batches."""
  return any(np.isfinite(_number(row.get(LOSS))) for row in _rows(folder))


def evaluations(folder: epath.Path) -> int:
  """How many losses on held-out data a run's curve has."""
  count = sum(np.isfinite(_number(row.get(EVALUATED))) for row in _rows(folder))
  ended = record.read(folder)
  return count + (ended is not None and ended.loss_eval is not None)


def _branch(folder: epath.Path) -> Branch:
  path = folder / "trunk.json"
  return msgspec.convert(files.read_json(path), Branch) if path.exists() else Branch()


def _rows(folder: epath.Path) -> Iterator[Mapping[str, object]]:
  """The rows of metrics of a run that has ended or is under way, by step."""
  paths = sorted((folder / "metrics").glob("*.jsonl")) if (folder / "metrics").exists() else []
  if (folder / "metrics.jsonl").exists():
    paths = [folder / "metrics.jsonl", *paths]
  rows = {row["step"]: row for path in paths for row in files.read_jsonl(path)}
  return (rows[step] for step in sorted(rows))


def _number(value: object) -> float:
  return float(value) if isinstance(value, int | float) else float("nan")
