"""The target of a study: its run, the forecast sealed before that run trains, and the score of the forecast."""

from etils import epath
from msgspec import structs

from bigmodel import record, train
from bigmodel.accounting import params_in
from bigmodel.designs.design import closest_size
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json
from bigmodel.laws import facts, seals
from bigmodel.laws import summary as laws
from bigmodel.laws.facts import FailedRun, Fits, Forecast, Score, Target
from bigmodel.laws.seals import Sealed
from bigmodel.study import folder
from bigmodel.study.plan import Plan
from bigmodel.study.prepare import Prepared
from bigmodel.train.results import as_measured
from bigmodel.train.run import Run, now
from bigmodel.workers.failures import failed_and_diverged
from bigmodel.workers.groups import Group


def forecast_path(workdir: epath.PathLike) -> epath.Path:
  return epath.Path(workdir) / "forecasts" / "target.json"


def read_forecast(workdir: epath.PathLike) -> Sealed[Forecast] | None:
  """Reads the sealed forecast of a study's folder, or returns None; raises if it was changed after it was sealed."""
  path = forecast_path(workdir)
  return seals.read(path, Forecast) if path.exists() else None


def why_not_sealed(prepared: Prepared) -> str:
  """Returns why the forecast cannot be sealed, or "": fitted runs have failed and `accept_failed` is not set."""
  fitted = folder.of_role(prepared.workdir, "fit")
  failed = [run for run in fitted if run.status == "failed"]
  if not failed or prepared.study.accept_failed or forecast_path(prepared.workdir).exists():
    return ""
  shown = "; ".join(f"{run.run_id} ({run.error})" for run in failed[:5])
  more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
  return (
    f"{prepared.workdir}: the forecast is not sealed: {len(failed)} of {len(fitted)} fitted runs have failed: {shown}"
    f"{more}. Rerun with --retry-failed to train them again, or set accept_failed=True in the Study of get_study to"
    " forecast without them"
  )


def seal_forecast(prepared: Prepared, fits: Fits) -> Sealed[Forecast]:
  """Seals and returns the forecast of the target before it trains; an existing sealed forecast is kept."""
  if (sealed := read_forecast(prepared.workdir)) is not None:
    return sealed
  target, convention = prepared.study.target, prepared.study.design.convention
  assert target is not None
  size = closest_size(target.sizes, prepared.counts_of, convention, laws.optimum_at(fits.optimum, target.flops))
  counts = prepared.counts_of(size)
  overrides = prepared.target_overrides(size)
  run = prepared.make(overrides)
  tokens = train.tokens_at(run.config, run.steps)
  test_run = Target(
    N=params_in(counts.params(), convention),
    D=tokens,
    C=counts.flops_in(convention, tokens),
    run_id=run.run_id,
    overrides=overrides,
  )
  every = folder.of_role(prepared.workdir, "fit")
  fitted = [one for one in every if one.finished]
  forecast = laws.make_forecast(fitted, prepared.study.laws, convention, test_run, fits.noise_floor)
  without_loss = {status: [FailedRun(**row) for row in rows] for status, rows in failed_and_diverged(every).items()}
  forecast = structs.replace(forecast, fitted=sorted(one.result_sha256 for one in fitted), **without_loss)
  sealed = seals.seal(forecast, now())
  seals.write(forecast_path(prepared.workdir), sealed)
  return sealed


def run_and_group(prepared: Prepared, sealed: Sealed[Forecast], plan: Plan) -> tuple[Run, Group]:
  """Returns the run that tests a sealed forecast, with the seal in its provenance, and its group of one run."""
  target = sealed.forecast.target
  run = prepared.make(target.overrides or {}, {"forecast_sha256": sealed.sha256})
  if run.run_id != target.run_id:
    raise UserError("the sealed forecast is for a different run than this config gives; choose another --workdir")
  return run, Group((run.run_id,), plan.target.expected_seconds if plan.target else 0.0)


def score(workdir: epath.PathLike) -> JsonObject | None:
  """Returns the sealed forecast with its score, empty until the target has ended; None without a forecast."""
  workdir = epath.Path(workdir)
  sealed = read_forecast(workdir)
  if sealed is None:
    return None
  run = workdir / "runs" / sealed.forecast.target.run_id
  ended, score = record.read(run), Score()
  if ended is not None:
    measured = as_measured(ended, folder.read_about(workdir).measure)
    provenance = facts.from_json(read_json(run / "provenance.json"), seals.Provenance, str(run))
    score = seals.score(sealed, measured, provenance)
  return sealed.to_json() | facts.to_json(score)
