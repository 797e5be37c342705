"""The metrics of one run on disk: numbered segments while it runs, `metrics.jsonl` when it ended."""

from typing import Any

from etils import epath

from bigmodel.files import read_jsonl, remove, write_jsonl
from bigmodel.parallel import hosts


class Metrics:
  """Rows of a run's metrics, appended in memory and flushed as whole segments."""

  def __init__(self, folder: epath.PathLike):
    self.folder = epath.Path(folder)
    self._rows: list[dict[str, Any]] = []

  @property
  def _segments(self) -> epath.Path:
    return self.folder / "metrics"

  def add(self, row: dict[str, Any]) -> None:
    """Adds a row of a step, or more facts to the last row if that is of the same step."""
    if self._rows and self._rows[-1]["step"] == row["step"]:
      self._rows[-1] |= row
    else:
      self._rows.append(row)

  def flush(self) -> None:
    if self._rows and hosts.is_first():
      write_jsonl(self._segments / f"{self._rows[0]['step']:010d}.jsonl", self._rows)
    self._rows = []

  def cut(self, step: int) -> None:
    """Drops all rows of steps past `step`, so that a resume writes each row once.

    What is kept is on disk before anything is removed, and cutting again changes nothing.
    """
    known = read(self.folder) if hosts.is_first() else []
    kept = [row for row in known if row["step"] <= step]
    if len(kept) < len(known):
      self._join(kept)

  def finish(self) -> None:
    """Joins the segments into `metrics.jsonl`."""
    self.flush()
    if hosts.is_first():
      self._join(read(self.folder))

  def _join(self, rows: list[dict[str, Any]]) -> None:
    write_jsonl(self.folder / "metrics.jsonl", rows)
    remove(self._segments)


def read(folder: epath.PathLike) -> list[dict[str, Any]]:
  """All rows of a run's metrics so far, by step."""
  folder = epath.Path(folder)
  paths = sorted((folder / "metrics").glob("*.jsonl")) if (folder / "metrics").exists() else []
  if (folder / "metrics.jsonl").exists():
    paths = [folder / "metrics.jsonl", *paths]
  rows = {row["step"]: row for path in paths for row in read_jsonl(path)}
  return [rows[step] for step in sorted(rows)]
