"""Reads points for fits and forecasts: exact repeats are counted once, outliers get no weight, and units are checked.

`points.from_csv` reads the same points without judging them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from bigmodel import files
from bigmodel.errors import UserError
from bigmodel.laws import collinear, curves, forms, notes, points, reach, table, units
from bigmodel.laws.curves import XY
from bigmodel.laws.law import Law
from bigmodel.laws.points import Points
from bigmodel.laws.source import Source
from bigmodel.record import Record


@dataclasses.dataclass(frozen=True)
class MeasuredRuns:
  """Points of N, D and C, notes about them, and doubts about the units of their columns."""

  points: Points
  notes: list[str]
  doubts: list[units.Doubt]
  sha256: str = ""  # of the file, or of the results of the study's runs

  def require_plain(self, asked: str, force: bool) -> None:
    """Raises `UserError` if numbers in parameters, tokens or FLOPs are asked for and the units are in doubt."""
    if self.doubts and not force:
      raise UserError(f"{asked}: the units are in doubt: {hint(self.doubts)}; --force takes the columns as they are")

  def check_budget(self, asked: str, C: float, force: bool) -> list[str]:
    """Notes about a budget C in FLOPs that lies far beyond the points; see `reach.check`."""
    self.require_plain(asked, force)
    if np.ptp(self.points.loss) == 0:
      raise UserError(f"{asked}: the loss is {self.points.loss[0]:g} in all points, so no size is better than others")
    return reach.check(asked, "C", C, self.points.C, force)

  def check_size(self, asked: str, N: float, D: float, force: bool) -> list[str]:
    """Notes about parameters and tokens that lie far beyond the points; see `reach.check`.

    Where units are in doubt they are taken to be those of the columns, if they lie near the points.
    """
    values = {"N": (N, self.points.N), "D": (D, self.points.D), "N D": (N * D, self.points.N * self.points.D)}
    found = []
    for quantity, (value, of_points) in values.items():
      found += reach.check(asked, quantity, value, of_points, force, hint(self.doubts))
    if found:
      self.require_plain(asked, force)
    return [*found[-1:], *self._exchanged(asked, N, D), *self.off_line(asked, N, D)]

  def off_line(self, asked: str, N: float, D: float) -> list[str]:
    """A note if the runs lie on a line, such as D = 20 N, and (N, D) does not."""
    return collinear.off_line(asked, N, D, self.points)

  def _exchanged(self, asked: str, N: float, D: float) -> list[str]:
    """A note if N and D would lie nearer to the points if they were exchanged."""

    def distance(N: float, D: float) -> float:
      return abs(math.log(reach.times(N, self.points.N))) + abs(math.log(reach.times(D, self.points.D)))

    nearer = N > D and distance(D, N) < distance(N, D)
    return (
      [f"{asked} has more parameters than tokens, and is nearer to the points as D,N: is it N,D?"] if nearer else []
    )


@dataclasses.dataclass(frozen=True)
class MeasuredCurves:
  """Curves of loss over x by name, notes about them, and doubts about the unit of x."""

  data: dict[str, XY]
  notes: list[str]
  doubts: list[units.Doubt]
  short: frozenset[str] = frozenset()  # names of curves that are left out

  def check(self, asked: str, group: str, x: float, force: bool) -> list[str]:
    """Notes about an x that lies far beyond a curve; see `reach.check`."""
    if group not in self.data:
      raise UserError(f"--at: no group {group!r} among the points; they have {', '.join(self.data)}")
    asked = f"{asked} (group {group})" if group else asked
    found = reach.check(asked, "x", x, self.data[group][0], force, hint(self.doubts))
    if found and self.doubts and not force:
      raise UserError(f"{found[0]}; --force answers anyway")
    return found


def hint(doubts: Sequence[units.Doubt]) -> str:
  """The doubts as part of a message."""
  return "; ".join(map(str, doubts))


def read(source: Source) -> tuple[pl.DataFrame, list[str]]:
  """The table of a CSV without exact repeats of rows, and notes about it."""
  runs = table.read(source)
  frame, repeats = without_repeats(runs.frame, source)
  return frame, [*runs.notes, *repeats]


def runs_of_csv(source: Source) -> MeasuredRuns:
  """The runs of a CSV with at least two of N, D and C. Raises `UserError` as `points.from_csv` does."""
  frame, found = read(source)
  runs = runs_of_table(frame, source)
  return dataclasses.replace(runs, notes=[*found, *runs.notes], sha256=files.sha256_file(source.path))


def groups_of_csv(source: Source) -> tuple[dict[str, MeasuredRuns], list[str]]:
  """The runs of each group of a CSV, and notes; groups that cannot be used are left out with a note.

  Raises `UserError` if there are no groups to separate, or if none can be used.
  """
  frame, found = read(source)
  digest = files.sha256_file(source.path)
  parts = table.groups(frame, source.path, source.group)
  found += notes.similar_names(parts)
  runs: dict[str, MeasuredRuns] = {}
  unfit: list[str] = []
  for name, part in parts.items():
    try:
      runs[name] = dataclasses.replace(runs_of_table(part, source), sha256=digest)
    except UserError as error:
      unfit.append(f"{name}: {error}")
  if not runs:
    raise UserError(unfit[0])
  return runs, found + unfit


def runs_of_table(frame: pl.DataFrame, source: Source) -> MeasuredRuns:
  """The runs of a table that was read before."""
  runs = points.of_table(frame, source)
  named = {name: source.columns[name] for name in ("N", "D", "C") if name in source.columns}
  doubts = units.doubts(named, {name: getattr(runs, name) for name in named}, table.names(frame))
  refuse_broken(source.path, doubts)
  labels = [] if runs.rows is None else runs.rows.tolist()
  losses = notes.Losses(runs.loss, source.loss, bool(source.stderr))
  examined = notes.examine(forms.LAWS["chinchilla"], (runs.N, runs.D), losses, labels)
  kept = runs if examined.kept.all() else runs[examined.kept]
  return MeasuredRuns(kept, [*map(str, doubts), *examined.notes, *collinear.of_runs(kept)], doubts)


def runs_of_records(records: Sequence[Record], convention: str) -> MeasuredRuns:
  """The runs of the finished records of a study."""
  runs = points.from_records(records, convention)
  labels = [record.run_id for record in records if record.finished]
  examined = notes.examine(forms.LAWS["chinchilla"], (runs.N, runs.D), notes.Losses(runs.loss), labels)
  results = files.sha256_text(f"{convention} {sorted(record.result_sha256 for record in records if record.finished)}")
  kept = runs if examined.kept.all() else runs[examined.kept]
  return MeasuredRuns(kept, [*examined.notes, *collinear.of_runs(kept)], [], results)


def curves_of_csv(source: Source) -> MeasuredCurves:
  """The curves of a CSV over x, by the values of its group column."""
  frame, found = read(source)
  measured = curves_of_table(frame, source)
  return dataclasses.replace(measured, notes=[*found, *measured.notes])


def curves_of_table(frame: pl.DataFrame, source: Source) -> MeasuredCurves:
  """The curves of a table that was read before. Those that are too short for a forecast are left out with a note."""
  parts = table.groups(frame, source.path, source.group)
  found = notes.similar_names(parts)
  data: dict[str, XY] = {}
  doubts: list[units.Doubt] = []
  for name, part in parts.items():
    x = table.column(part, source.path, source.columns["x"], "--x")
    loss = table.column(part, source.path, source.loss, "--loss")
    doubts = doubts or units.doubts({"x": source.columns["x"]}, {"x": x}, table.names(part))
    examined = examine_part(source, forms.LAWS["power_offset"], part, (x,), loss)
    data[name] = (x[examined.kept], loss[examined.kept])
    found += [f"{name}: {note}" if name else note for note in examined.notes]
  refuse_broken(source.path, doubts)
  long, short = curves.without_short(data)
  return MeasuredCurves(long, [*map(str, doubts), *found, *short], doubts, frozenset(set(data) - set(long)))


def refuse_broken(path: str, doubts: Sequence[units.Doubt]) -> None:
  """Raises `UserError` for columns with which even exponents would be wrong."""
  if broken := [doubt for doubt in doubts if doubt.breaks_fits]:
    raise UserError(f"{path}: {hint(broken)}")


def examine_part(
  source: Source, law: Law, part: pl.DataFrame, columns: Sequence[np.ndarray], loss: np.ndarray
) -> notes.Examined:
  """Examines the rows of a table, or of a group of it."""
  losses = notes.Losses(loss, source.loss, bool(source.stderr))
  return notes.examine(law, columns, losses, part[table.ROW].to_list())


def without_repeats(frame: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, list[str]]:
  """The table without rows that repeat an earlier one exactly, and a note about them.

  Columns that differ in every row, such as an index, are not compared, unless they hold losses or scales.
  """
  have = table.names(frame)
  texts: Mapping[str, str] = {**source.columns, "loss": source.loss, "stderr": source.stderr, "group": source.group}
  used = {
    units.parse(part, have).name
    for text in texts.values()
    if text
    for part in ([text] if text in have else text.split(","))
  }
  compared = [
    name for name in have if not frame[name].dtype.is_nested() and (name in used or frame[name].n_unique() < len(frame))
  ]
  if not compared or not used & set(have):
    return frame, []
  first = frame.select(pl.struct(compared).is_first_distinct()).to_series()
  if first.all():
    return frame, []
  again = frame[table.ROW].filter(~first)
  rows = f"row {again[0]} repeats" if len(again) == 1 else f"{len(again)} rows, such as row {again[0]}, repeat"
  return frame.filter(first), [f"{rows} an earlier row exactly, and each row is counted once"]
