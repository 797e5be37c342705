"""Studies: design -> plan -> run -> fit -> forecast -> score -> report, and nothing else."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from bigmodel import data, models, record, train
from bigmodel.accounting import params_in
from bigmodel.config import Config, flatten, require, with_overrides
from bigmodel.data.pipeline import Data, Datasets
from bigmodel.designs.design import Design, Overrides, Planned, Settings, closest_size, repeat_seeds
from bigmodel.designs.grids import Listed
from bigmodel.designs.halving import Halving
from bigmodel.designs.isoflop import IsoFlop, Scan
from bigmodel.designs.search import Search
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import absolute, read_json, write_json
from bigmodel.laws import forecast, forms, seals
from bigmodel.laws import summary as laws
from bigmodel.parallel import hosts
from bigmodel.parallel.topology import Topology
from bigmodel.planner.plan import StudyPlan, plan_study
from bigmodel.study import folder, priced, report_facts, rounds
from bigmodel.study.fits import fit_study
from bigmodel.train.display import Display, duration
from bigmodel.train.resolution import check, check_resolved, resolve, resolve_for_plan
from bigmodel.train.run import Branch, Run, interruptible, now
from bigmodel.train.stop import Stop
from bigmodel.workers import execute, leases
from bigmodel.workers import workers as workers_
from bigmodel.workers.failures import failed_and_diverged

LAWS = (*forecast.LAWS, "isoflop")
LOOKING = (Search, Halving)  # designs that see results before they go on


@dataclasses.dataclass(frozen=True)
class Target:
  """The scale to forecast: a budget, and the sizes among which the fitted optimum chooses."""

  flops: float
  sizes: Sequence[Overrides]


@dataclasses.dataclass(frozen=True)
class Study:
  """What `get_study(config)` returns. A sweep is a study with no laws and no target."""

  name: str
  question: str
  design: Design
  settings: Settings = lambda params, tokens: {}
  laws: Sequence[str] = LAWS  # of N, D and C, or FILE.py:NAME: all are fitted, and all but isoflop forecast the target
  measure: str = "loss"  # what laws are of: the held-out loss, or the name of a metric
  seeds: int = 1  # of one run in the middle of the largest budget: the noise floor
  scan: Scan | None = None
  target: Target | None = None
  accept_failed: bool = False  # seal the forecast of the target though fitted runs have failed


def plan_for(config: Config, study: Study, where: Topology, prices: dict[str, float]) -> StudyPlan:
  """A whole study planned for a topology: its runs one after another, each on all chips, and then its target.

  The largest run is compiled, the others are planned by arithmetic. The critical path
  has all fitted runs at once, each on as many chips, and the target after them.
  """
  size = lambda overrides: resolve_for_plan(_with_horizon(with_overrides(config, overrides)), where.count)
  counts = lambda overrides: models.counts_of(size(overrides))
  planned = [(", ".join(sorted({one.role})), one.overrides) for one in _plan_runs(study, counts)]
  unique = {repr(sorted(overrides.items())): (role, overrides) for role, overrides in reversed(planned)}
  jobs = list(reversed(unique.values()))
  if study.target is not None:
    sized = [(counts(s), s) for s in study.target.sizes]
    dearest, largest = max(sized, key=lambda pair: pair[0].params_total)
    tokens = round(study.target.flops / dearest.flops(1)[study.design.convention])
    jobs.append(("target", {**largest, "train.tokens": tokens, **study.settings(dearest.params_total, tokens)}))
  label = lambda overrides: ", ".join(f"{name.split('.')[-1]} {value}" for name, value in overrides.items())
  sized_jobs = [(role, label(overrides), size(overrides)) for role, overrides in jobs]
  return plan_study(study.name, sized_jobs, where, prices)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A study that passed every check: its runs by id, in the order of the design."""

  study: Study
  config: Config
  data: Datasets
  workdir: epath.Path
  runs: dict[str, Run]
  planned: dict[str, list[Planned]]

  def make(self, overrides: Overrides, provenance: dict[str, Any] | None = None) -> Run:
    return _make_run(self.study, self.config, self.data, self.workdir, overrides, provenance)

  def counts_of(self, size: Overrides) -> Any:
    return _counts(self.config, self.data.base, size)


def prepare(config: Config, study: Study, workdir: epath.PathLike) -> Prepared:
  """Checks the study and all its runs; writes nothing but the cached corpus."""
  require(bool(study.name), "get_study: the study has no name")
  inner = getattr(study.design, "design", None)
  require(
    not isinstance(inner, LOOKING),
    f"get_study: {type(inner).__name__} is a design of its own; {type(study.design).__name__} cannot have it inside",
  )
  laws_of_runs = forecast.find_laws([name for name in study.laws if name != "isoflop"], "get_study: laws")
  _check_base(config)
  datasets = Datasets(config)
  workdir = absolute(workdir)
  counts = lambda size: _counts(config, datasets.base, size)
  planned = _plan_runs(study, counts)
  runs: dict[str, Run] = {}
  roles: dict[str, list[Planned]] = {}
  for one in planned:
    run = _make_run(study, config, datasets, workdir, one.overrides)
    runs.setdefault(run.run_id, run)
    roles.setdefault(run.run_id, []).append(one)
  if study.laws:
    fitted = sum(any(one.role == "fit" for one in ones) for ones in roles.values())
    for law in laws_of_runs or [forms.LAWS["chinchilla"]]:
      require(
        fitted > len(law.names),
        f"get_study: law {law.name} has {len(law.names)} parameters and {fitted} fitted runs; add runs or sizes",
      )
  prepared = Prepared(study, config, datasets, workdir, runs, roles)
  if study.target is not None:
    largest = max(one.budget for one in planned)
    require(largest > 0, "get_study: a target needs a design that says its runs' tokens")
    ratio = study.target.flops / largest
    require(
      ratio >= 8, f"get_study: the target is {ratio:.1f}x the largest fitted budget; a forecast needs at least 8x"
    )
    for size in study.target.sizes:
      prepared.make(_target_overrides(prepared, size))
  folder.check_study(workdir, _about(prepared))
  if (known := folder.read_plan(workdir)) is not None:
    folder.check_runs(known, set(runs), workdir)
  return prepared


def _about(prepared: Prepared) -> dict[str, Any]:
  """study.json."""
  study = prepared.study
  return {
    "name": study.name,
    "question": study.question,
    "laws": [forms.absolute(name) for name in study.laws],
    "measure": study.measure,
    "convention": study.design.convention,
    "target_flops": study.target.flops if study.target else None,
    "config": flatten(prepared.config),
  }


def _check_base(config: Config) -> None:
  check(_with_horizon(config))


def _with_horizon(config: Config) -> Config:
  """The base of a study need not say its horizon: the design does."""
  base = config.copy_and_resolve_references()
  if not base.train.tokens and not base.train.steps:
    base.train.steps, base.train.ramp = 1, ()
  return base


def _counts(config: Config, corpus: Data, size: Overrides) -> Any:
  return models.counts_of(resolve(with_overrides(config, size), corpus))


def _make_run(
  study: Study,
  config: Config,
  datasets: Datasets,
  workdir: epath.Path,
  overrides: Overrides,
  provenance: dict[str, Any] | None = None,
) -> Run:
  changed = with_overrides(config, overrides)
  check(changed)
  for name in flatten(config.data):
    same = changed.data[name] == config.data[name] or name in (*data.FREE, *data.HELD_OUT)
    require(same, f"get_study: data.{name} is not an axis of a study: all its runs read one corpus")
  if any(changed.data.get(name) != config.data.get(name) for name in data.HELD_OUT):
    changed.data.sha256 = ""  # which says what the base holds out, too
  corpus = datasets(changed)
  resolved = resolve(changed, corpus)
  check_resolved(resolved, corpus)
  run = Run(resolved, workdir, study.name, provenance or {})
  return dataclasses.replace(run, folder=workdir / "runs" / run.run_id)


def _plan_runs(study: Study, counts: Callable) -> list[Planned]:
  runs = study.design.runs(counts, study.settings)
  planned = list(runs)
  if study.scan is not None:
    require(isinstance(study.design, IsoFlop), "get_study: a scan needs an IsoFlop design")
    planned += study.scan.runs(study.design, counts, study.settings)  # pyright: ignore[reportArgumentType]
  if study.seeds > 1:
    last = [run for run in runs if run.budget == max(r.budget for r in runs)]
    planned += repeat_seeds(last[len(last) // 2], study.seeds)
  return planned


def make_plan(
  prepared: Prepared,
  known: dict[str, Any] | None = None,
  workers: int = 1,
  machines: int = 1,
  on_cluster: bool = False,
) -> dict[str, Any]:
  """The study's plan: priced and grouped into programs. What is `known` of an earlier one stays."""
  targets = _target_candidates(prepared)
  return priced.plan(
    prepared.study.name, prepared.runs, prepared.planned, targets, known, workers, machines, on_cluster
  )


def _target_candidates(prepared: Prepared) -> list[Run]:
  target = prepared.study.target
  return [prepared.make(_target_overrides(prepared, size)) for size in target.sizes] if target else []


def _target_overrides(prepared: Prepared, size: Overrides) -> Overrides:
  target, design = prepared.study.target, prepared.study.design
  assert target is not None
  counts = prepared.counts_of(size)
  tokens = round(target.flops / counts.flops(1)[design.convention])
  return {**size, "train.tokens": tokens, **prepared.study.settings(counts.params_total, tokens)}


def run_study(
  prepared: Prepared,
  display_quiet: bool,
  stop: Stop,
  retry: bool = False,
  workers: workers_.Workers | None = None,
  command: Sequence[str] = (),
) -> dict[str, Any]:
  """Everything that is missing: trains, fits, seals, tests, scores, reports. Returns report.json.

  `workers` are started as `command`. On a cluster they train every run, here every run but the target.
  """
  workdir = prepared.workdir
  on_cluster = workers is not None and workers.kind != "local"
  split = (workers.count, workers.machines, on_cluster) if workers else (1, 1, False)
  hosts.first(lambda: write_json(workdir / "study.json", _about(prepared)))
  with workers_.alone(workdir, "plan", stop):
    known = hosts.first(lambda: folder.read_plan(workdir))
    the_plan = hosts.share(make_plan(prepared, known, *split))  # times differ between processes
    the_plan["workers_train_target"] = on_cluster
    if the_plan != known:
      hosts.first(lambda: rounds.write(workdir, the_plan, (known or {}).get("round", [])))
    if retry:
      hosts.first(lambda: execute.set_failed_aside(workdir))
  if leases.can_be_in(workdir):
    hosts.first(leases.Leases(workdir / "leases", workers_.PARENT).forget_ended)
  runs = _all_runs(prepared, the_plan)
  left = execute.seconds_left(the_plan, workdir)
  with Display(left, display_quiet) as display:
    trains = execute.run_groups
    if leases.can_be_in(workdir):  # others may be at it, too
      trains = functools.partial(workers_.work, workers_.PARENT)
    here = functools.partial(trains, data=prepared.data, workdir=workdir, display=display, stop=stop)
    if left:
      display.say(f"{prepared.study.name}: {len(the_plan['runs'])} runs, {duration(left)} expected")
    noted = contextlib.nullcontext()  # what failed here, from round to round; where others train, this is no worker
    if not workers and leases.can_be_in(workdir):
      noted = workers_.failures_of(workdir, workers_.PARENT)
    workers_in = workers_.Pool(workers, command, workdir, display, stop) if workers else contextlib.nullcontext()
    with noted as failures, workers_in as pool:
      train_them = pool.train if pool else functools.partial(here, failures=failures) if failures else here
      if isinstance(prepared.study.design, Search):
        _search(prepared, train_them, split, stop)
      elif isinstance(prepared.study.design, Halving):
        own = [runs[run_id] for run_id in prepared.runs]
        measure = prepared.study.measure
        rounds.halve(prepared.study.design, measure, own, the_plan, workdir, train_them, split, stop)
      else:
        train_them(the_plan["groups"], runs)
      # On a cluster the largest run is trained there, too; of this machine's workers each has but a part of its cores.
      if pool and on_cluster:
        _forecast_and_test(prepared, the_plan, pool.train, stop)
    if not on_cluster:
      _forecast_and_test(prepared, the_plan, here, stop)
  return hosts.first(lambda: write_report(workdir))


def _forecast_and_test(prepared: Prepared, the_plan: dict[str, Any], train_them: rounds.Train, stop: Stop) -> None:
  """Fits the study's laws, seals the forecast of its target, and trains that."""
  if not prepared.study.laws:
    return
  workdir = prepared.workdir
  fits = hosts.first(lambda: fit_study(workdir))
  if prepared.study.target is None:
    return
  with workers_.alone(workdir, "forecast", stop):
    problem = hosts.first(lambda: _why_not_sealed(prepared))
    if problem:
      hosts.first(lambda: write_report(workdir))
      raise UserError(problem)
    sealed = hosts.first(lambda: _seal_forecast(prepared, fits))
  run, group = _target_run(prepared, sealed, the_plan)
  train_them([group], {run.run_id: run})


def _why_not_sealed(prepared: Prepared) -> str:
  """Why no forecast can be sealed now: fitted runs have failed and `accept_failed` is not set. Empty if one can."""
  fitted = folder.of_role(prepared.workdir, "fit")
  failed = [one for one in fitted if one["status"] == "failed"]
  if not failed or prepared.study.accept_failed or _forecast_path(prepared).exists():
    return ""
  shown = "; ".join(f"{one['run_id']} ({one['error']})" for one in failed[:5])
  more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
  return (
    f"{prepared.workdir}: the forecast is not sealed: {len(failed)} of {len(fitted)} fitted runs have failed: {shown}"
    f"{more}. Rerun with --retry-failed to train them again, or set accept_failed=True in the Study of get_study to"
    " forecast without them"
  )


def _forecast_path(prepared: Prepared) -> epath.Path:
  return prepared.workdir / "forecasts" / "target.json"


def _search(prepared: Prepared, train_them: rounds.Train, split: tuple[int, int, bool], stop: Stop) -> None:
  """Trains what a search asks for, until it asks for nothing more."""
  design, workdir, added = prepared.study.design, prepared.workdir, prepared
  assert isinstance(design, Search)
  while True:
    with workers_.alone(workdir, "plan", stop):
      before = hosts.first(lambda: folder.read_plan(workdir))
      the_plan = hosts.share(make_plan(added, before, *split))
      hosts.first(functools.partial(rounds.write, workdir, the_plan, the_plan["groups"]))
    runs = _all_runs(added, the_plan)
    train_them(the_plan["groups"], runs)
    known = hosts.first(lambda the_plan=the_plan: folder.trials(workdir, the_plan, prepared.study.measure))
    more = design.more(known, prepared.counts_of, prepared.study.settings)
    made = [(prepared.make(one.overrides), one) for one in more]
    if all(run.run_id in runs for run, _ in made):  # nothing more, or axes that change no run
      return rounds.end(workdir, runs, stop)
    added = dataclasses.replace(
      prepared, runs={run.run_id: run for run, _ in made}, planned={run.run_id: [one] for run, one in made}
    )


def _all_runs(prepared: Prepared, the_plan: dict[str, Any]) -> dict[str, Run]:
  """The runs of a plan by id, with where they leave others: an earlier, smaller design may have planned some."""
  others = {row["run_id"]: row["overrides"] for row in the_plan["runs"] if row["run_id"] not in prepared.runs}
  runs = prepared.runs | {run_id: prepared.make(overrides) for run_id, overrides in others.items()}
  leaving = {row["run_id"]: Branch(**row["trunk"]) for row in the_plan["runs"] if "trunk" in row}
  if isinstance(prepared.study.design, Halving):
    leaving = {}  # they begin together, and pause before any could leave
  return {run_id: dataclasses.replace(run, branch=leaving.get(run_id)) for run_id, run in runs.items()}


def work(prepared: Prepared, worker: str, quiet: bool, stop: Stop, patience: float = leases.PATIENCE) -> None:
  """Trains what other workers of a planned study do not, until all its runs have ended.

  On a cluster that includes the run that tests the forecast.
  """
  workdir, before, looks = prepared.workdir, None, isinstance(prepared.study.design, LOOKING)
  hosts.first(functools.partial(rounds.next_plan, workdir, None, stop))  # refuses a folder that has no plan
  with Display(0.0, quiet) as display, workers_.failures_of(workdir, worker, patience) as failures:
    train_them = functools.partial(
      workers_.work,
      worker,
      data=prepared.data,
      workdir=workdir,
      display=display,
      stop=stop,
      patience=patience,
      failures=failures,
    )
    while True:
      the_plan = hosts.first(functools.partial(rounds.next_plan, workdir, before, stop))
      if the_plan is None:
        raise Interrupted("stopped between runs")
      groups = the_plan.get("round", []) if looks else the_plan["groups"]
      if groups == before:
        return  # nothing was asked for any more
      train_them(groups, _all_runs(prepared, the_plan))
      if not looks or not groups:
        break
      before = groups
    if prepared.study.target is None or not the_plan.get("workers_train_target"):
      return
    path = _forecast_path(prepared)
    if hosts.first(lambda: rounds.wait_for(path, stop)):
      sealed = hosts.first(lambda: seals.verify(read_json(path), str(path)))
      run, group = _target_run(prepared, sealed, the_plan)
      # One worker trains it, and one stays in case it fails there; the others leave.
      train_them([group], {run.run_id: run}, leave_to_others=True)


def run_listed(
  config: Config, name: str, overrides: Sequence[Overrides], workdir: epath.PathLike, quiet: bool = False
) -> list[dict[str, Any]]:
  """Trains these variants of a config as a study without a law; their records, in the same order."""
  ended = run_all(config, name, overrides, workdir, quiet)
  for one in ended:
    require(one["status"] == "finished", f"{workdir}: a run did not finish: {one['error'] or one['status']}")
  return ended


def run_all(
  config: Config, name: str, overrides: Sequence[Overrides], workdir: epath.PathLike, quiet: bool = False
) -> list[dict[str, Any]]:
  """`run_listed`, where runs may fail or diverge."""
  with interruptible() as stop:
    prepared = prepare(config, Study(name, "", Listed(overrides), laws=()), workdir)
    report = run_study(prepared, quiet, stop)
  by_id = {one["run_id"]: one for one in report["runs"]}
  return [by_id[run_id] for run_id in prepared.runs]


def run_to_end(config: Config, study: Study, workdir: epath.PathLike, quiet: bool = False) -> dict[str, Any]:
  """All of a study, for scripts; report.json."""
  with interruptible() as stop:
    return run_study(prepare(config, study, workdir), quiet, stop)


def _seal_forecast(prepared: Prepared, fits: dict[str, Any]) -> dict[str, Any]:
  """Seals a forecast of the target before it is run; a sealed one stays as it is."""
  path = _forecast_path(prepared)
  if path.exists():
    return seals.verify(read_json(path), str(path))
  target, convention = prepared.study.target, prepared.study.design.convention
  assert target is not None
  best = laws.optimum_at(fits, target.flops)
  size = closest_size(target.sizes, prepared.counts_of, convention, best)
  counts = prepared.counts_of(size)
  overrides = _target_overrides(prepared, size)
  run = prepared.make(overrides)
  tokens = train.tokens_at(run.config, run.steps)
  flops = counts.flops(tokens)
  N = params_in(counts.params(), convention)
  every = folder.of_role(prepared.workdir, "fit")
  fitted = [one for one in every if one["status"] == "finished"]
  scale = forecast.Scale(N, tokens, flops[convention])
  facts = laws.make_forecast(fitted, prepared.study.laws, convention, scale, fits["noise_floor"]) | {
    "target": {**dataclasses.asdict(scale), "run_id": run.run_id, "overrides": overrides},
    "fitted": sorted(one["result_sha256"] for one in fitted),
    **failed_and_diverged(every),
  }
  sealed = seals.seal(facts, now())
  write_json(path, sealed)
  return sealed


def score_study(workdir: epath.PathLike) -> dict[str, Any] | None:
  """The sealed forecast with its score, or with no score while the target has not ended."""
  workdir = epath.Path(workdir)
  path = workdir / "forecasts" / "target.json"
  if not path.exists():
    return None
  sealed = seals.verify(read_json(path), str(path))
  run = workdir / "runs" / sealed["target"]["run_id"]
  ended = record.read(run)
  if ended is not None:
    ended = folder.as_measured(ended, read_json(workdir / "study.json")["measure"])
  if ended is None:
    return sealed | {"actual": None, "inside": None, "log_error": None}
  return sealed | seals.score(sealed, ended, read_json(run / "provenance.json"))


def write_report(workdir: epath.PathLike, figure_format: str | None = None) -> dict[str, Any]:
  """Writes report.json and report.html (and figures/*.pdf or *.svg) of a study's folder; returns report.json."""
  from bigmodel.report import page

  workdir = absolute(workdir)
  return page.write(workdir, report_facts.gather(workdir, score_study(workdir)), figure_format)


def _target_run(prepared: Prepared, sealed: dict[str, Any], the_plan: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
  """The run that tests a sealed forecast, whose provenance carries the seal, and the group that it is alone."""
  run = prepared.make(sealed["target"]["overrides"], {"forecast_sha256": sealed["sha256"]})
  if run.run_id != sealed["target"]["run_id"]:
    raise UserError("the sealed forecast is about another run than this config makes; choose another --workdir")
  return run, {
    "run_ids": [run.run_id],
    "expected_seconds": (the_plan["target"] or {}).get("expected_seconds", 0.0),
  }
