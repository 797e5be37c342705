"""The fit that `bigmodel fit` makes of a CSV: Chinchilla's law or parabolas, or a choice between several laws."""

from collections.abc import Sequence
from typing import Any

from bigmodel.errors import UserError
from bigmodel.laws import choice, forms, summary, table
from bigmodel.laws.source import Source

AUTO = "auto"


def fit(source: Source, law: str = "", at: Sequence[float] = ()) -> dict[str, Any]:
  """Fits laws to a CSV; of each group the law that forecasts its hidden points best comes first.

  `law` is a list of names separated by commas, `auto`, or empty for the usual law of the given columns. `at` are
  budgets in FLOPs whose optimum is wanted, for Chinchilla's law alone. Returns `laws`, `optimum` and `warnings`.
  """
  names = law.split(",") if law else ["power_offset" if "x" in source.columns else "chinchilla"]
  if not source.group and names in (["chinchilla"], ["isoflop"]):
    return _fit_compute(source, names[0], at)
  if "isoflop" in names:
    raise UserError("--law: isoflop is fitted alone and without --group")
  if at or source.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  columns = choice.Columns(source.path, dict(source.columns), source.loss, source.stderr, source.group)
  if law == AUTO:
    return choice.fit(columns, choice.usual_laws(columns), skip_unfit=True)
  return choice.fit(columns, [forms.find(name) for name in names])


def _fit_compute(source: Source, law: str, at: Sequence[float]) -> dict[str, Any]:
  """Chinchilla's law or parabolas. `N` may name several columns: the first is fitted, the others for comparison."""
  names = source.columns["N"].split(",") if "N" in source.columns else []
  points, *others = [source.with_column("N", name).points() for name in names] or [source.points()]
  if law == "isoflop":
    facts = summary.fit_profiles(points)
  else:
    facts = summary.fit_points(points, at, dict(zip(names[1:], others, strict=True)))
  rows = [] if points.rows is None else points.rows.tolist()
  return facts | {"warnings": table.warnings((points.N, points.D), points.loss, rows)}
