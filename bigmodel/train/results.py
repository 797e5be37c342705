"""What runs came to: the records of those that ended, failed or were stopped, and losses at rungs."""

from typing import Any, TypedDict

from bigmodel import hardware, models, record, train
from bigmodel.files import read_json
from bigmodel.parallel import hosts
from bigmodel.tasks.metrics import main
from bigmodel.train.run import Run, now, read_status, write_status


class Rung(TypedDict):
  """What a run came to at a step where it paused; without losses where it had diverged."""

  loss_train: float | None
  loss_eval: float | None
  metrics: dict[str, float]


def read_rungs(run: Run) -> dict[str, Rung]:
  """What a run came to where it paused, by step. Rungs at which it was not evaluated are left out."""
  path = run.folder / "rungs.json"
  rungs: dict[str, Rung | float | None] = read_json(path) if path.exists() else {}
  # Where an earlier version wrote a training loss, the run is evaluated when it comes by again.
  return {step: rung for step, rung in rungs.items() if rung is not None and not isinstance(rung, (float, int))}


def stopped_record(run: Run, step: int) -> dict[str, Any]:
  """Writes the record of a run that did not go on from a rung."""
  rung, seconds = read_rungs(run)[str(step)], read_status(run.folder)["seconds"]
  facts = _nothing(run) | {
    "status": "stopped" if rung["loss_eval"] is not None else "diverged",
    "tokens": train.tokens_at(run.config, step),
    "steps": step,
    **flops_of(run, step),
    "loss_train": rung["loss_train"],
    "loss_eval": rung["loss_eval"],
    "metrics": rung["metrics"],
    "seconds": seconds,
  }
  return end(run, facts)


def failed_record(run: Run, error: BaseException) -> dict[str, Any]:
  """Writes the record of a run that an exception ended; it does not stop the others."""
  said = str(error).strip().splitlines()[0] if str(error).strip() else ""
  return end(run, _nothing(run) | {"status": "failed", "error": f"{type(error).__name__}: {said}"})


def _nothing(run: Run) -> dict[str, Any]:
  """The fields of a record of a run that was not evaluated."""
  return facts_of(run) | {
    "tokens": 0,
    "epochs_seen": 0.0,
    "steps": 0,
    **flops_of(run, 0),
    **dict.fromkeys(record.NULLABLE),
    "metrics": {},
    "intervals": {},
    "params_sha256": "",
    "seconds": 0.0,
    "ended_at": now(),
  }


def end(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
  sealed = record.seal(facts)
  write_status(run, facts["status"], facts["steps"], facts["seconds"], 0.0)
  if hosts.is_first():
    record.write(run.folder, sealed)
  return sealed


def facts_of(run: Run) -> dict[str, Any]:
  """The fields of a record that are known before the run starts."""
  config, trunk = run.config, run.folder / "trunk.json"
  return {
    "run_id": run.run_id,
    "study": run.study,
    "seed": config.seed,
    "trunk": read_json(trunk) if trunk.exists() else {},
    "model": models.shape_of(config).describe(),
    "batch_tokens": train.batch_tokens(config),
    "learning_rate": config.optim.lr,
    "data_sha256": config.data.sha256,
    "started_at": read_json(run.folder / "provenance.json")["started_at"],
    "versions": record.versions(),
    "devices": hardware.describe(),
    **models.counts_of(config).params(),
  }


def flops_of(run: Run, done: int) -> dict[str, float]:
  return models.counts_of(run.config).flops(train.tokens_at(run.config, done), run.config.parallel.remat)


def summary(sealed: dict[str, Any]) -> str:
  if sealed["status"] != "finished":
    why = f": {sealed['error']}" if sealed["error"] else ""
    return f"{sealed['run_id']}  {sealed['status']} at step {sealed['steps']}{why}"
  measured = "".join(f"  {name} {value:.4f}" for name, value in main(sealed["metrics"]).items())
  return (
    f"{sealed['run_id']}  N {sealed['params_total']:,}  D {sealed['tokens']:,}  loss {sealed['loss_eval']:.4f}"
    f"{measured}  {sealed['seconds']:.1f} s"
  )
