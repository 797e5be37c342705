"""Checks a study and all its runs before anything is written or trained."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from bigmodel import data, models
from bigmodel.accounting import Counts
from bigmodel.config import Config, flatten, require
from bigmodel.data.pipeline import Datasets
from bigmodel.declarations import Value
from bigmodel.designs.design import CountsOf, Overrides, Planned, repeat_seeds
from bigmodel.designs.early_stopping import EarlyStopping
from bigmodel.designs.halving import Halving
from bigmodel.designs.isoflop import IsoFlop
from bigmodel.designs.search import Search
from bigmodel.files import absolute
from bigmodel.laws import forecast, forms
from bigmodel.laws.schedules import notation
from bigmodel.study import folder
from bigmodel.study import plan as plans
from bigmodel.study.description import Study
from bigmodel.study.folder import About
from bigmodel.study.plan import Wanted
from bigmodel.train import places
from bigmodel.train.configs import with_overrides
from bigmodel.train.resolution import check, check_resolved, resolve
from bigmodel.train.run import Run

PAUSING_DESIGNS = (Halving, EarlyStopping)  # designs whose runs pause, are compared and may be stopped
ADAPTIVE_DESIGNS = (Search, *PAUSING_DESIGNS)  # designs whose later runs depend on earlier results
LEAST_EXTRAPOLATION = 8  # smallest ratio of the target's budget to the largest fitted budget


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A study that passed every check: its runs by id, in the order of the design."""

  study: Study
  config: Config
  data: Datasets
  workdir: epath.Path
  runs: dict[str, Run]
  planned: dict[str, list[Planned]]
  places: Mapping[str, Value]  # of the data in the study's folder, where it has other names for the same data
  tests_target: bool = True  # whether the forecast is sealed and its target trained, once the fitted runs have ended

  @property
  def is_adaptive(self) -> bool:
    return isinstance(self.study.design, ADAPTIVE_DESIGNS)

  def about(self) -> About:
    """Returns the contents of study.json."""
    study = self.study
    return About(
      name=study.name,
      question=study.question,
      laws=tuple(forms.absolute(name) for name in study.laws),
      measure=study.measure,
      convention=study.design.convention,
      target_flops=study.target.flops if study.target else None,
      config=flatten(places.replaced(self.config, self.places)),
      schedules=tuple(study.schedules),
    )

  def make(self, overrides: Overrides, provenance: Mapping[str, str] | None = None) -> Run:
    """Returns a run of the study, with a checked config."""
    changed = with_overrides(self.config, overrides)
    check(changed)
    for name in flatten(self.config.data):
      same = changed.data[name] == self.config.data[name] or name in (*data.FREE, *data.HELD_OUT)
      require(same, f"get_study: data.{name} is not an axis of a study: all its runs read one corpus")
    if any(changed.data.get(name) != self.config.data.get(name) for name in data.HELD_OUT):
      changed.data.sha256 = ""  # the hash covers the held-out rows, which differ between these runs
    corpus = self.data(changed)
    resolved = resolve(changed, corpus)
    check_resolved(resolved, corpus)
    run = Run(places.replaced(resolved, self.places), self.workdir, self.study.name, provenance or {})
    return dataclasses.replace(run, folder=self.workdir / "runs" / run.run_id)

  def counts_of(self, size: Overrides) -> Counts:
    return models.counts_of(resolve(with_overrides(self.config, size), self.data.base))

  def target_overrides(self, size: Overrides) -> Overrides:
    """Returns the overrides of the target if it has this size."""
    target, design = self.study.target, self.study.design
    assert target is not None
    counts = self.counts_of(size)
    tokens = round(target.flops / counts.flops_in(design.convention, 1))
    return {**size, "train.tokens": tokens, **self.study.settings(counts.params_total, tokens)}

  def target_candidates(self) -> list[Run]:
    """Returns the runs from which the fit will choose the target."""
    sizes = self.study.target.sizes if self.study.target else ()
    return [self.make(self.target_overrides(size)) for size in sizes]

  def wanted(self) -> Wanted:
    """Returns the input of `plan.make`."""
    return Wanted(self.study.name, self.runs, self.planned, self.target_candidates())


def prepare(config: Config, study: Study, workdir: epath.PathLike) -> Prepared:
  """Checks the study and all its runs. Writes only the cached corpus."""
  require(bool(study.name), "get_study: the study has no name")
  inner = getattr(study.design, "design", None)
  require(
    not isinstance(inner, ADAPTIVE_DESIGNS),
    f"get_study: {type(inner).__name__} is adaptive; {type(study.design).__name__} cannot contain it",
  )
  forecast.find_laws([name for name in study.laws if name != "isoflop"], "get_study: laws")
  check(with_horizon(config))
  datasets = Datasets(config)
  named = places.of_study(config, datasets.base.sha256, workdir)
  prepared = Prepared(study, config, datasets, absolute(workdir), {}, {}, named)
  for planned in plan_runs(study, prepared.counts_of):
    run = prepared.make(planned.overrides)
    prepared.runs.setdefault(run.run_id, run)
    prepared.planned.setdefault(run.run_id, []).append(planned)
  _check_horizons(prepared)
  _check_laws(prepared)
  _check_schedules(prepared)
  _check_target(prepared)
  folder.check_study(prepared.workdir, prepared.about())
  if (earlier := plans.read(prepared.workdir)) is not None:
    folder.check_runs(earlier, set(prepared.runs), prepared.workdir)
  return prepared


def _check_horizons(prepared: Prepared) -> None:
  """Raises `UserError` for a design that compares runs at pauses and whose runs have several horizons."""
  design, steps = prepared.study.design, sorted({run.steps for run in prepared.runs.values()})
  require(
    not isinstance(design, PAUSING_DESIGNS) or len(steps) < 2,
    f"study design: {type(design).__name__} compares runs of equal horizons, not of"
    f" {' and '.join(f'{number:,}' for number in steps)} steps",
  )


def _check_laws(prepared: Prepared) -> None:
  """Raises `UserError` if a law has at least as many parameters as there are fitted runs."""
  study = prepared.study
  if not study.laws:
    return
  fitted = sum(any(planned.role == "fit" for planned in every) for every in prepared.planned.values())
  laws = forecast.find_laws([name for name in study.laws if name != "isoflop"], "get_study: laws")
  for law in laws or [forms.LAWS["chinchilla"]]:
    require(
      fitted > len(law.names),
      f"get_study: law {law.name} has {len(law.names)} parameters and {fitted} fitted runs; add runs or sizes",
    )


def _check_schedules(prepared: Prepared) -> None:
  """Raises `UserError` for a schedule to forecast that is invalid at the highest learning rate of the fitted runs.

  An adaptive design may choose higher rates later than those that are known here.
  """
  peak = max(run.config.optim.lr for run in prepared.runs.values())
  for text in prepared.study.schedules:
    notation.parse(text, max(peak, 1.0) if prepared.is_adaptive else peak, 0, "get_study: schedules")


def _check_target(prepared: Prepared) -> None:
  """Raises `UserError` if the target is too close to the fitted runs or cannot be trained."""
  target = prepared.study.target
  if target is None:
    return
  largest = max(planned.budget for every in prepared.planned.values() for planned in every)
  require(largest > 0, "get_study: a target needs a design that sets train.tokens of its runs")
  ratio = target.flops / largest
  require(
    ratio >= LEAST_EXTRAPOLATION,
    f"get_study: the target is {ratio:.1f}x the largest fitted budget; a forecast needs at least"
    f" {LEAST_EXTRAPOLATION}x",
  )
  prepared.target_candidates()


def with_horizon(config: Config) -> Config:
  """Returns a copy with a horizon. The config of a study needs none, because the design sets it."""
  base = config.copy_and_resolve_references()
  if not base.train.tokens and not base.train.steps:
    base.train.steps, base.train.ramp = 1, ()
  return base


def plan_runs(study: Study, counts_of: CountsOf) -> list[Planned]:
  """Returns the runs of the design and of the scan, and the repetitions with other seeds."""
  runs = study.design.runs(counts_of, study.settings)
  planned = list(runs)
  if study.scan is not None:
    require(isinstance(study.design, IsoFlop), "get_study: a scan needs an IsoFlop design")
    assert isinstance(study.design, IsoFlop)
    planned += study.scan.runs(study.design, counts_of, study.settings)
  if study.seeds > 1:
    largest = max(run.budget for run in runs)
    last = [run for run in runs if run.budget == largest]
    planned += repeat_seeds(last[len(last) // 2], study.seeds)
  return planned
