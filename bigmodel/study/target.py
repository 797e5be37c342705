"""The target of a study: its forecast, sealed before it is trained, its run, and its score."""

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
  """The sealed forecast of a study's folder, or None; one that was changed after it was sealed is refused."""
  path = forecast_path(workdir)
  return seals.read(path, Forecast) if path.exists() else None


def why_not_sealed(prepared: Prepared) -> str:
  """Why no forecast can be sealed now: fitted runs have failed and `accept_failed` is not set. Empty if one can."""
  fitted = folder.of_role(prepared.workdir, "fit")
  failed = [one for one in fitted if one.status == "failed"]
  if not failed or prepared.study.accept_failed or forecast_path(prepared.workdir).exists():
    return ""
  shown = "; ".join(f"{one.run_id} ({one.error})" for one in failed[:5])
  more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
  return (
    f"{prepared.workdir}: the forecast is not sealed: {len(failed)} of {len(fitted)} fitted runs have failed: {shown}"
    f"{more}. Rerun with --retry-failed to train them again, or set accept_failed=True in the Study of get_study to"
    " forecast without them"
  )


def seal_forecast(prepared: Prepared, fits: Fits) -> Sealed[Forecast]:
  """Seals a forecast of the target before it is trained; one that is sealed already stays as it is."""
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
  """The run that tests a sealed forecast, and the group in which it trains alone. Its provenance carries the seal."""
  target = sealed.forecast.target
  run = prepared.make(target.overrides or {}, {"forecast_sha256": sealed.sha256})
  if run.run_id != target.run_id:
    raise UserError("the sealed forecast is about another run than this config makes; choose another --workdir")
  return run, Group((run.run_id,), plan.target.expected_seconds if plan.target else 0.0)


def score(workdir: epath.PathLike) -> JsonObject | None:
  """The sealed forecast with its score, which is empty while the target has not ended; None without a forecast."""
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
