"""The fit that `bigmodel fit` makes of a CSV: Chinchilla's law or parabolas, or a choice between several laws."""

from collections.abc import Sequence

from msgspec import structs

from bigmodel.errors import UserError
from bigmodel.laws import any_columns, choice, forms, measured, mixture_forms, reach, summary
from bigmodel.laws.facts import TableFits
from bigmodel.laws.source import Source

AUTO = "auto"


def fit(source: Source, law: str = "", at: Sequence[float] = (), force: bool = False, places: str = "") -> TableFits:
  """Fits laws to a CSV; of each group the law that forecasts its hidden points best comes first.

  `law` is a list of names separated by commas, `auto`, or empty for the usual law of the given columns. `at` are
  budgets in FLOPs whose optimum is wanted, which is possible for Chinchilla's law only; those that lie far beyond the
  points, or whose units are in doubt, are refused unless `force`. `places` is a CSV of runs to forecast with `auto`.
  """
  if places and law != AUTO:
    raise UserError("--predict: is for --law=auto; bigmodel forecast forecasts with other laws")
  names = law.split(",") if law else ["power_offset" if "x" in source.columns else "chinchilla"]
  if not source.group and names in (["chinchilla"], ["isoflop"]):
    return _fit_compute(source, names[0], at, force)
  if "isoflop" in names:
    raise UserError("--law: isoflop is fitted alone and without --group")
  if at or source.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  if law == AUTO:
    return _fit_automatic(source, places)
  source = any_columns.expanded(source)
  return choice.fit(source, [forms.find(_of_shares(name, source)) for name in names])


def _fit_automatic(source: Source, places: str) -> TableFits:
  """The usual laws of usual columns with intervals, and the combination of all laws of any columns."""
  if places or set(source.columns) not in choice.USUAL:
    return any_columns.fit(source, places)
  usual = choice.fit(source, choice.usual_laws(source), skip_unfit=True)
  try:
    return structs.replace(usual, choice=any_columns.fit(source).choice)
  except UserError as error:
    return structs.replace(usual, warnings=[*usual.warnings, str(error)])


def _of_shares(name: str, source: Source) -> str:
  """The name of a law of mixtures with its number of shares: mixing5 for mixing."""
  count = sum(mixture_forms.is_share(column) for column in source.columns)
  return f"{name}{count}" if name in mixture_forms.FAMILIES and count else name


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
