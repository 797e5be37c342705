"""Runs a study: design, plan, run, fit, forecast, score, report."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import msgspec
from etils import epath

from bigmodel import record
from bigmodel.config import Config, require
from bigmodel.designs.design import Overrides
from bigmodel.designs.grids import Listed
from bigmodel.designs.search import Search
from bigmodel.errors import Interrupted, RunsFailed, UserError
from bigmodel.files import JsonObject, absolute, write_json
from bigmodel.parallel import hosts
from bigmodel.record import Branch, Record
from bigmodel.study import folder, report_facts, rounds, target
from bigmodel.study import plan as plans
from bigmodel.study.description import Study
from bigmodel.study.fits import fit_study
from bigmodel.study.plan import HERE, Plan, Workforce
from bigmodel.study.prepare import PAUSING_DESIGNS, Prepared, prepare
from bigmodel.train import leases, places
from bigmodel.train.display import Display, duration
from bigmodel.train.run import Run, interruptible
from bigmodel.train.stop import Stop
from bigmodel.workers import execute
from bigmodel.workers.groups import Group
from bigmodel.workers.pool import Pool, Workers
from bigmodel.workers.worker import COMMAND, Worker, exclusive


def make_plan(prepared: Prepared, earlier: Plan | None = None, workforce: Workforce = HERE) -> Plan:
  """Returns the study's plan: costs and groups of its runs. Runs of an `earlier` plan keep theirs."""
  return plans.make(prepared.wanted(), earlier, workforce)


def run_study(
  prepared: Prepared,
  quiet: bool,
  stop: Stop,
  retry: bool = False,
  workers: Workers | None = None,
  command: Sequence[str] = (),
) -> JsonObject:
  """Does all steps of a study that are still missing: train, fit, seal, test, score, report. Returns report.json.

  `workers` are started with `command`. Workers on a cluster train every run. Workers on this machine train all but the
  target, which gets all cores of the machine.
  """
  workforce = Workforce(workers.count, workers.machines, workers.kind != "local") if workers else HERE
  plan = _write_plan(prepared, workforce, retry, stop)
  with Display(plan.seconds_left(prepared.workdir), quiet) as display:
    here = Worker(COMMAND, prepared.workdir, prepared.data, display, stop)
    if left := plan.seconds_left(prepared.workdir):
      display.say(f"{prepared.study.name}: {len(plan.runs)} runs, {duration(left)} expected")
    with _training(here, workers, command) as train_groups:
      _train_design(prepared, plan, train_groups, workforce, stop)
      if workforce.on_cluster:
        _forecast_and_test(prepared, plan, train_groups, stop)
    if not workforce.on_cluster:
      _forecast_and_test(prepared, plan, here.train, stop)
  return hosts.first(lambda: write_report(prepared.workdir))


def _write_plan(prepared: Prepared, workforce: Workforce, retry: bool, stop: Stop) -> Plan:
  """Writes study.json and plan.json; with `retry`, sets the records of failed runs aside."""
  workdir = prepared.workdir
  hosts.first(lambda: write_json(workdir / "study.json", msgspec.to_builtins(prepared.about())))
  there = places.replaced(prepared.config, prepared.places)
  hosts.first(lambda: places.note(prepared.config, there, workdir))
  with exclusive(workdir, "plan", stop):
    earlier = hosts.first(lambda: plans.read(workdir))
    plan = hosts.share(make_plan(prepared, earlier, workforce))  # timings differ between processes
    round_ = earlier.round if earlier is not None else ()
    plan = msgspec.structs.replace(plan, workers_train_target=workforce.on_cluster, round=round_)
    if plan != earlier:
      hosts.first(lambda: plans.write(workdir, plan))
    if retry:
      hosts.first(lambda: execute.set_failed_aside(workdir))
  if leases.can_be_in(workdir):
    hosts.first(leases.Leases(workdir / "leases", COMMAND).forget_ended)
  return plan


@contextlib.contextmanager
def _training(here: Worker, workers: Workers | None, command: Sequence[str]) -> Iterator[rounds.Train]:
  """Yields the function that trains groups: that of a pool of workers, if any, else of this process."""
  if workers is not None:
    with Pool(workers, command, here.workdir, here.display, here.stop) as pool:
      yield pool.train
  elif leases.can_be_in(here.workdir):
    with here.present():
      yield here.train
  else:
    yield here.train


def _train_design(prepared: Prepared, plan: Plan, train_groups: rounds.Train, workforce: Workforce, stop: Stop) -> None:
  """Trains every run of the design, in rounds if it is adaptive."""
  design, workdir = prepared.study.design, prepared.workdir
  if isinstance(design, Search):
    _search(prepared, design, train_groups, workforce, stop)
    return
  runs = _all_runs(prepared, plan)
  if isinstance(design, PAUSING_DESIGNS):
    members = [runs[run_id] for run_id in prepared.runs]
    rounds.PausingRounds(plan, members, workdir, train_groups, workforce, stop).run(design, prepared.study.measure)
    return
  train_groups(plan.groups, runs)


def _search(prepared: Prepared, design: Search, train_groups: rounds.Train, workforce: Workforce, stop: Stop) -> None:
  """Trains the points that a search proposes, until it proposes no new ones."""
  workdir, measure, asked = prepared.workdir, prepared.study.measure, prepared
  while True:
    with exclusive(workdir, "plan", stop):
      earlier = hosts.first(lambda: plans.read(workdir))
      plan = hosts.share(make_plan(asked, earlier, workforce))
      hosts.first(functools.partial(rounds.write, workdir, plan, plan.groups))
    runs = _all_runs(asked, plan)
    train_groups(plan.groups, runs)
    trials = hosts.first(functools.partial(folder.trials, workdir, plan, measure))
    more = design.more(trials, prepared.counts_of, prepared.study.settings)
    made = [(prepared.make(planned.overrides), planned) for planned in more]
    if all(run.run_id in runs for run, _ in made):  # no more points, or only points whose runs exist already
      rounds.end(workdir, runs, stop)
      return
    planned = {run.run_id: [planned] for run, planned in made}
    asked = dataclasses.replace(prepared, runs={run.run_id: run for run, _ in made}, planned=planned)


def _all_runs(prepared: Prepared, plan: Plan) -> dict[str, Run]:
  """Returns the runs of a plan by id, with their branches. Some may have been planned by an earlier, smaller design."""
  earlier = {run.run_id: run.overrides for run in plan.runs if run.run_id not in prepared.runs}
  runs = prepared.runs | {run_id: prepared.make(overrides) for run_id, overrides in earlier.items()}
  branches = {run.run_id: run.trunk for run in plan.runs}
  if isinstance(prepared.study.design, PAUSING_DESIGNS):
    branches = {}  # the runs of such a design start together
  return {run_id: dataclasses.replace(run, branch=branches.get(run_id, Branch())) for run_id, run in runs.items()}


def _forecast_and_test(prepared: Prepared, plan: Plan, train_groups: rounds.Train, stop: Stop) -> None:
  """Fits the study's laws, seals the forecast of its target, and trains the target."""
  workdir = prepared.workdir
  if not prepared.study.laws:
    return
  if problem := hosts.first(lambda: folder.why_none_finished(workdir)):
    hosts.first(lambda: write_report(workdir))
    raise RunsFailed(problem)
  fits = hosts.first(lambda: fit_study(workdir))
  if prepared.study.target is None or not prepared.tests_target:
    return
  with exclusive(workdir, "forecast", stop):
    problem = hosts.first(lambda: target.why_not_sealed(prepared))
    if problem:
      hosts.first(lambda: write_report(workdir))
      raise UserError(problem)
    sealed = hosts.first(lambda: target.seal_forecast(prepared, fits))
  run, group = target.run_and_group(prepared, sealed, plan)
  train_groups([group], {run.run_id: run})


def write_report(workdir: epath.PathLike, figure_format: str | None = None) -> JsonObject:
  """Writes report.json and report.html (and figures/*.pdf or *.svg) of a study's folder; returns report.json."""
  from bigmodel.report import page

  workdir = absolute(workdir)
  return page.write(workdir, report_facts.gather(workdir, target.score(workdir)), figure_format)


def work(prepared: Prepared, name: str, quiet: bool, stop: Stop, patience: float = leases.PATIENCE) -> None:
  """Runs one worker of a planned study until all its runs have ended; other workers train the other runs.

  On a cluster, the runs include the target.
  """
  workdir = prepared.workdir
  hosts.first(functools.partial(rounds.next_plan, workdir, None, stop))  # raises if the folder has no plan
  with (
    Display(0.0, quiet) as display,
    Worker(name, workdir, prepared.data, display, stop, patience).present() as worker,
  ):
    plan = _work_on_design(prepared, worker)
    no_target = prepared.study.target is None or not prepared.tests_target
    if plan is None or no_target or not plan.workers_train_target:
      return
    if hosts.first(lambda: rounds.wait_for(target.forecast_path(workdir), stop)):
      sealed = hosts.first(lambda: target.read_forecast(workdir))
      assert sealed is not None
      run, group = target.run_and_group(prepared, sealed, plan)
      # One worker trains the target, and one stays to retry it if that fails; the others leave.
      worker.train([group], {run.run_id: run}, leave_to_others=True)


def _work_on_design(prepared: Prepared, worker: Worker) -> Plan | None:
  """Trains the groups of the plan, round after round; returns the last plan, or None if no round came in time."""
  before: Sequence[Group] | None = None
  while True:
    plan = hosts.first(functools.partial(rounds.next_plan, prepared.workdir, before, worker.stop))
    if plan is None:
      raise Interrupted("stopped between runs")
    groups = plan.round if prepared.is_adaptive else plan.groups
    if groups == before:
      return None
    worker.train(groups, _all_runs(prepared, plan))
    if not prepared.is_adaptive or not groups:
      return plan
    before = groups


def run_listed(
  config: Config, name: str, overrides: Sequence[Overrides], workdir: epath.PathLike, quiet: bool = False
) -> list[Record]:
  """Trains variants of a config as a study without laws; returns their records, in the same order."""
  ended = run_all(config, name, overrides, workdir, quiet)
  for run in ended:
    require(run.finished, f"{workdir}: a run did not finish: {run.error or run.status}")
  return ended


def run_all(
  config: Config, name: str, overrides: Sequence[Overrides], workdir: epath.PathLike, quiet: bool = False
) -> list[Record]:
  """Like `run_listed`, but runs may fail or diverge."""
  with interruptible() as stop:
    prepared = prepare(config, Study(name, "", Listed(overrides), laws=()), workdir)
    run_study(prepared, quiet, stop)
  records = [record.read(run.folder) for run in prepared.runs.values()]
  return [ended for ended in records if ended is not None]


def run_to_end(config: Config, study: Study, workdir: epath.PathLike, quiet: bool = False) -> JsonObject:
  """Runs a whole study from a script; returns report.json."""
  with interruptible() as stop:
    return run_study(prepare(config, study, workdir), quiet, stop)
