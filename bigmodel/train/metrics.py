"""The metrics of one run on disk: numbered segments while it runs, `metrics.jsonl` after its end."""

from collections.abc import Mapping

from etils import epath

from bigmodel.files import JsonObject, read_jsonl, remove, write_jsonl
from bigmodel.parallel import hosts


class Metrics:
  """Rows of a run's metrics, appended in memory and flushed as whole segments."""

  def __init__(self, folder: epath.PathLike):
    self.folder = epath.Path(folder)
    self._rows: list[JsonObject] = []

  @property
  def _segments(self) -> epath.Path:
    return self.folder / "metrics"

  def add(self, step: int, facts: Mapping[str, object]) -> None:
    """Adds a row of a step, or more facts to the last row if that is of the same step."""
    if not self._rows or self._rows[-1]["step"] != step:
      self._rows.append({"step": step})
    self._rows[-1] |= facts

  def flush(self) -> None:
    if self._rows and hosts.is_first():
      write_jsonl(self._segments / f"{self._rows[0]['step']:010d}.jsonl", self._rows)
    self._rows = []

  def cut(self, step: int) -> None:
    """Drops all rows of steps past `step`, so that a resume writes each row once.

    The kept rows are on disk before anything is removed, and cutting twice is safe.
    """
    rows = read(self.folder) if hosts.is_first() else []
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
      self._join(kept)

  def finish(self) -> None:
    """Joins the segments into `metrics.jsonl`."""
    self.flush()
    if hosts.is_first():
      self._join(read(self.folder))

  def _join(self, rows: list[JsonObject]) -> None:
    write_jsonl(self.folder / "metrics.jsonl", rows)
    remove(self._segments)


def read(folder: epath.PathLike) -> list[JsonObject]:
  """All rows of a run's metrics so far, by step."""
  folder = epath.Path(folder)
  paths = sorted((folder / "metrics").glob("*.jsonl")) if (folder / "metrics").exists() else []
  if (folder / "metrics.jsonl").exists():
    paths = [folder / "metrics.jsonl", *paths]
  rows = {row["step"]: row for path in paths for row in read_jsonl(path)}
  return [rows[step] for step in sorted(rows)]
