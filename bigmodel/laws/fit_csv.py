"""The fit that `bigmodel fit` makes of a CSV: Chinchilla's law or parabolas, or a choice between several laws."""

from collections.abc import Sequence

from msgspec import structs

from bigmodel.errors import UserError
from bigmodel.laws import choice, forms, measured, reach, summary
from bigmodel.laws.facts import TableFits
from bigmodel.laws.source import Source

AUTO = "auto"


def fit(source: Source, law: str = "", at: Sequence[float] = (), force: bool = False) -> TableFits:
  """Fits laws to a CSV; of each group the law that forecasts its hidden points best comes first.

  `law` is a list of names separated by commas, `auto`, or empty for the usual law of the given columns. `at` are
  budgets in FLOPs whose optimum is wanted, which is possible for Chinchilla's law only; those that lie far beyond the
  points, or whose units are in doubt, are refused unless `force`.
  """
  names = law.split(",") if law else ["power_offset" if "x" in source.columns else "chinchilla"]
  if not source.group and names in (["chinchilla"], ["isoflop"]):
    return _fit_compute(source, names[0], at, force)
  if "isoflop" in names:
    raise UserError("--law: isoflop is fitted alone and without --group")
  if at or source.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  if law == AUTO:
    return choice.fit(source, choice.usual_laws(source), skip_unfit=True)
  return choice.fit(source, [forms.find(name) for name in names])


def _fit_compute(source: Source, law: str, at: Sequence[float], force: bool) -> TableFits:
  """Chinchilla's law or parabolas. `N` may name several columns: the first is fitted, the others for comparison."""
  names = source.columns["N"].split(",") if "N" in source.columns else []
  sources = [source.with_column("N", name) for name in names] or [source]
  runs, *others = map(measured.runs_of_csv, sources)
  notes = [note for C in at for note in runs.check_budget(f"--at={C:g}", C, force)]
  if law == "isoflop":
    fits = summary.fit_profiles(runs.points)
  else:
    again = {name: other.points for name, other in zip(names[1:], others, strict=True)}
    fits = summary.fit_points(runs.points, at, again)
  if at:
    optima = [structs.replace(each, beyond=reach.times(each.C, runs.points.C)) for each in fits.optimum]
    fits = structs.replace(fits, optimum=optima)
  return structs.replace(fits, warnings=[*runs.notes, *notes])
