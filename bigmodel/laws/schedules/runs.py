"""The training curves of runs in their folders, for laws of the schedule.

Runs of one model and one batch size belong together, such as a trunk and its branches: the rows of a branch begin with
those of its trunk, so that one trunk gives several horizons.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from bigmodel import files
from bigmodel.errors import UserError
from bigmodel.laws.schedules import curves
from bigmodel.laws.schedules.curves import Curve

LOSS, EVALUATED = "loss", "loss_eval"  # of training batches, and on held-out data at intermediate evaluations


def read(folders: Sequence[epath.PathLike], loss: str = LOSS) -> list[Curve]:
  """The curve of each run's folder, named by its folder; `loss` is a field of its metrics.

  Raises `UserError` for a folder without metrics, and for a run without this loss or without a learning rate.
  """
  return [_curve(epath.Path(folder), loss) for folder in folders]


def _curve(folder: epath.Path, loss: str) -> Curve:
  rows = [row for row in _rows(folder) if isinstance(row.get("lr"), int | float)]
  if not rows:
    raise UserError(f"{folder}: its metrics have no learning rate (lr); is this the folder of a run that has trained?")
  steps = np.array([row["step"] for row in rows], np.int64)
  rates = np.array([row["lr"] for row in rows], np.float64)
  losses = np.array([_number(row.get(loss)) for row in rows])
  given = np.isfinite(losses) & (losses > 0)
  if not given.any():
    raise UserError(f"{folder}: none of its {len(rows)} rows of metrics has {loss}")
  curves.check_gaps(str(folder), steps, rates)
  return Curve(folder.name, steps[given], losses[given], curves.schedule(steps, rates), int(steps[0]))


def _rows(folder: epath.Path) -> Iterator[Mapping[str, object]]:
  """The rows of metrics of a run that has ended or is under way, by step."""
  paths = sorted((folder / "metrics").glob("*.jsonl")) if (folder / "metrics").exists() else []
  if (folder / "metrics.jsonl").exists():
    paths = [folder / "metrics.jsonl", *paths]
  rows = {row["step"]: row for path in paths for row in files.read_jsonl(path)}
  return (rows[step] for step in sorted(rows))


def _number(value: object) -> float:
  return float(value) if isinstance(value, int | float) else float("nan")
