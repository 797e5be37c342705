"""The target of a study: its forecast, sealed before it is trained, its run, and its score."""

import dataclasses
from typing import Any

from etils import epath

from bigmodel import record, train
from bigmodel.accounting import params_in
from bigmodel.designs.design import closest_size
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json, write_json
from bigmodel.laws import forecast, seals
from bigmodel.laws import summary as laws
from bigmodel.study import folder
from bigmodel.study.plan import Plan
from bigmodel.study.prepare import Prepared
from bigmodel.train.results import as_measured
from bigmodel.train.run import Run, now
from bigmodel.workers.failures import failed_and_diverged
from bigmodel.workers.groups import Group


def forecast_path(workdir: epath.PathLike) -> epath.Path:
  return epath.Path(workdir) / "forecasts" / "target.json"


def read_forecast(workdir: epath.PathLike) -> JsonObject | None:
  """The sealed forecast of a study's folder, or None; one that was changed after it was sealed is refused."""
  path = forecast_path(workdir)
  return seals.verify(read_json(path), str(path)) if path.exists() else None


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


def seal_forecast(prepared: Prepared, fits: dict[str, Any]) -> JsonObject:
  """Seals a forecast of the target before it is trained; one that is sealed already stays as it is."""
  if (sealed := read_forecast(prepared.workdir)) is not None:
    return sealed
  target, convention = prepared.study.target, prepared.study.design.convention
  assert target is not None
  size = closest_size(target.sizes, prepared.counts_of, convention, laws.optimum_at(fits, target.flops))
  counts = prepared.counts_of(size)
  overrides = prepared.target_overrides(size)
  run = prepared.make(overrides)
  tokens = train.tokens_at(run.config, run.steps)
  scale = forecast.Scale(params_in(counts.params(), convention), tokens, counts.flops_in(convention, tokens))
  every = folder.of_role(prepared.workdir, "fit")
  fitted = [one for one in every if one.finished]
  facts = laws.make_forecast(fitted, prepared.study.laws, convention, scale, fits["noise_floor"]) | {
    "target": {**dataclasses.asdict(scale), "run_id": run.run_id, "overrides": overrides},
    "fitted": sorted(one.result_sha256 for one in fitted),
    **failed_and_diverged(every),
  }
  sealed = seals.seal(facts, now())
  write_json(forecast_path(prepared.workdir), sealed)
  return sealed


def run_and_group(prepared: Prepared, sealed: JsonObject, plan: Plan) -> tuple[Run, Group]:
  """The run that tests a sealed forecast, and the group in which it trains alone. Its provenance carries the seal."""
  run = prepared.make(sealed["target"]["overrides"], {"forecast_sha256": sealed["sha256"]})
  if run.run_id != sealed["target"]["run_id"]:
    raise UserError("the sealed forecast is about another run than this config makes; choose another --workdir")
  return run, Group((run.run_id,), plan.target.expected_seconds if plan.target else 0.0)


def score(workdir: epath.PathLike) -> JsonObject | None:
  """The sealed forecast with its score, which is empty while the target has not ended; None without a forecast."""
  workdir = epath.Path(workdir)
  sealed = read_forecast(workdir)
  if sealed is None:
    return None
  run = workdir / "runs" / sealed["target"]["run_id"]
  ended = record.read(run)
  if ended is None:
    return sealed | {"actual": None, "inside": None, "log_error": None}
  measured = as_measured(ended, folder.read_about(workdir).measure)
  return sealed | seals.score(sealed, measured, read_json(run / "provenance.json"))
