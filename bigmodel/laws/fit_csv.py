"""The fit that `bigmodel fit` makes of a CSV: Chinchilla's law or parabolas, or a choice between several laws."""

from collections.abc import Mapping, Sequence

from msgspec import structs

from bigmodel.errors import UserError
from bigmodel.laws import any_columns, choice, forms, measured, mixture_forms, reach, summary
from bigmodel.laws.facts import LawFit, Optimum, TableFits
from bigmodel.laws.measured import MeasuredRuns
from bigmodel.laws.source import Source

AUTO = "auto"


def fit(source: Source, law: str = "", at: Sequence[float] = (), force: bool = False, places: str = "") -> TableFits:
  """Fits laws to a CSV; of each group the law that forecasts its hidden points best comes first.

  `law` is a list of names separated by commas, `auto`, or empty for the usual law of the given columns. `at` are
  budgets in FLOPs whose optimum is wanted, which needs N and D; those that lie far beyond the
  points, or whose units are in doubt, are refused unless `force`. `places` is a CSV of runs to forecast with `auto`.
  """
  if places and law != AUTO:
    raise UserError("--predict: is for --law=auto; bigmodel forecast forecasts with other laws")
  names = law.split(",") if law else ["power_offset" if "x" in source.columns else "chinchilla"]
  if at and names == ["isoflop"]:
    raise UserError("--at: isoflop fits the budgets of the points only; leave out --law for the optimum at others")
  if names in (["chinchilla"], ["isoflop"]):
    if source.group:
      return _fit_groups(source, law, at, force)
    return _fit_compute(source, law, at, force)
  if "isoflop" in names:
    raise UserError("--law: isoflop is fitted alone")
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


def _fit_groups(source: Source, law: str, at: Sequence[float], force: bool) -> TableFits:
  """Chinchilla's law or parabolas of each group; groups to which they cannot be fitted are named."""
  groups, warnings = measured.groups_of_csv(source)
  laws: list[LawFit] = []
  optima: list[Optimum] = []
  unfit: list[str] = []
  for name, runs in groups.items():
    try:
      fits = _of_runs(runs, law, at, force)
    except UserError as error:
      unfit.append(f"{name}: {error}; this group is left out")
      continue
    laws += [structs.replace(each, group=name) for each in fits.laws]
    optima += [structs.replace(each, group=name) for each in fits.optimum]
    warnings += [f"{name}: {note}" for note in fits.warnings]
  if not laws:
    raise UserError(unfit[0])
  return TableFits(laws=laws, optimum=optima, warnings=warnings + unfit)


def _fit_compute(source: Source, law: str, at: Sequence[float], force: bool) -> TableFits:
  """Chinchilla's law or parabolas. `N` may name several columns: the first is fitted, the others for comparison."""
  names = source.columns["N"].split(",") if "N" in source.columns else []
  sources = [source.with_column("N", name) for name in names] or [source]
  runs, *others = map(measured.runs_of_csv, sources)
  return _of_runs(runs, law, at, force, dict(zip(names[1:], others, strict=True)))


def _of_runs(
  runs: MeasuredRuns, law: str, at: Sequence[float], force: bool, others: Mapping[str, MeasuredRuns] | None = None
) -> TableFits:
  """The fit of one set of runs; `others` are the same with parameters counted otherwise."""
  notes = [note for C in at for note in runs.check_budget(f"--at={C:g}", C, force)]
  if law == "isoflop":
    fits = summary.fit_profiles(runs.points)
  else:
    again = {name: other.points for name, other in (others or {}).items()}
    fits = summary.fit_points(runs.points, at, again, [forms.LAWS[law]] if law else [])
  if at:
    optima = [structs.replace(each, beyond=reach.times(each.C, runs.points.C)) for each in fits.optimum]
    fits = structs.replace(fits, optimum=optima)
    notes += [note for each in optima for note in runs.off_line(f"the best size at {each.C:g}", each.N, each.D)]
  return structs.replace(fits, warnings=[*runs.notes, *notes])
