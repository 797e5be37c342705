"""Scores sealed forecasts with measured losses, for `bigmodel forecast --score`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.facts import ScoredRow, ScoreTotal
  from bigmodel.laws.source import Source


def score(source: "Source", paths: Sequence[str], output: Output) -> Facts:
  """Compares sealed forecasts with the losses of a table: errors, coverage and interval scores, by row and in all."""
  from bigmodel.laws import facts, seals

  scales = _scales(source)
  truth, notes = seals.read_truth(source, scales)
  ledger = seals.ledger([seals.read(path, facts.TableForecast) for path in paths], truth, scales)
  if not ledger:
    raise UserError(f"--score: {source.path} has the truth of none of these forecasts (same columns and scales?)")
  total, groups = seals.total(ledger), seals.by_group(ledger)
  _show(ledger, scales, {**groups, "all" if groups else "": total}, output)
  output.notes(f"note: {note}" for note in notes)
  return {
    "rows": [facts.to_json(row) for row in ledger],
    "coverage": total.coverage,
    "total": facts.to_json(total),
    "groups": {name: facts.to_json(each) for name, each in groups.items()},
  }


def _scales(source: "Source") -> tuple[str, ...]:
  """The columns by which a forecast and its truth are matched."""
  if "x" in source.columns:
    return ("x",)
  return ("N", "D", *(name for name in source.columns if name not in ("N", "D", "C")))


def _show(
  ledger: "Sequence[ScoredRow]", scales: Sequence[str], totals: "Mapping[str, ScoreTotal]", output: Output
) -> None:
  from bigmodel.laws import seals

  grouped = len(totals) > 1
  rows = [
    (
      *((row.group or "-",) if grouped else ()),
      *(f"{value:.4g}" for value in seals.place(row, scales)),
      row.predicted,
      row.interval90,
      row.actual,
      f"{row.relative_error:+.2%}",
      row.inside["interval90"],
      row.interval_score["interval90"],
    )
    for row in ledger
  ]
  group = ("group",) if grouped else ()
  titles = ("forecast", "90% interval", "truth", "forecast / truth - 1", "inside", "interval score")
  output.table("forecast and truth", (*group, *scales, *titles), rows)
  for name, total in totals.items():
    shown = [(level, covered, total.interval_score[level]) for level, covered in total.coverage.items()]
    title = f"{f'{name}: ' if name else ''}{total.forecasts} forecasts"
    output.table(title, ("interval", "covered", "mean interval score"), shown)
    output.say(f"mean relative error {total.relative_error:.2%}, root mean square of ln {total.rmsle:.2%}")
