"""The records of runs that finished, failed or were stopped, and the losses at rungs, where halving compares runs."""

import contextlib
from collections.abc import Mapping

import msgspec
from etils import epath
from msgspec import UNSET, UnsetType

from bigmodel import hardware, models, record, train
from bigmodel.accounting import Flops
from bigmodel.config import nearest, require
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.parallel import hosts
from bigmodel.record import Branch, Record, StoppedBy
from bigmodel.tasks.metrics import as_loss, main
from bigmodel.train.run import Run, now, read_status, write_status


class Rung(msgspec.Struct, frozen=True):
  """The losses of a run at a step where it paused; None if it had diverged."""

  loss_train: float | None = None
  loss_eval: float | None = None
  metrics: dict[str, float] = {}


def read_rungs(run: Run) -> dict[int, Rung]:
  """The losses of a run where it paused, by step. Rungs at which it was not evaluated are left out."""
  path = run.folder / "rungs.json"
  document: dict[str, object] = read_json(path) if path.exists() else {}
  # Earlier versions wrote a number, the training loss: such a run is evaluated when it reaches the rung again.
  written = {int(step): rung for step, rung in document.items() if isinstance(rung, dict)}
  try:
    return {step: msgspec.convert(rung, Rung) for step, rung in written.items()}
  except msgspec.ValidationError as error:
    raise UserError(f"{path}: is corrupt ({error}); delete it") from error


def write_rung(run: Run, step: int, rung: Rung) -> None:
  """Adds a rung to rungs.json."""
  rungs = {**read_rungs(run), step: rung}
  document = {str(step): msgspec.to_builtins(rung) for step, rung in rungs.items()}
  hosts.first(lambda: write_json(run.folder / "rungs.json", document))


def stopped_record(run: Run, step: int, stopped_by: StoppedBy | UnsetType = UNSET) -> Record:
  """Writes the record of a run that was stopped at a rung, with the forecast for which early stopping did so."""
  rung, seconds = read_rungs(run)[step], read_status(run.folder).seconds
  stopped = msgspec.structs.replace(
    unevaluated(run, step),
    status="stopped" if rung.loss_eval is not None else "diverged",
    tokens=train.tokens_at(run.config, step),
    steps=step,
    loss_train=rung.loss_train,
    loss_eval=rung.loss_eval,
    metrics=rung.metrics,
    stopped_by=UNSET if rung.loss_eval is None else stopped_by,
    seconds=seconds,
  )
  return end(run, stopped)


def failed_record(run: Run, error: BaseException) -> Record:
  """Writes the record of a run that an exception ended."""
  message = str(error).strip().splitlines()[0] if str(error).strip() else ""
  failed = msgspec.structs.replace(unevaluated(run, 0), status="failed", error=f"{type(error).__name__}: {message}")
  return end(run, failed)


def end(run: Run, ended: Record) -> Record:
  """Seals and writes the record; returns it sealed."""
  sealed = record.seal(ended)
  write_status(run, sealed.status, sealed.steps, sealed.seconds, 0.0)
  if hosts.is_first():
    record.write(run.folder, sealed)
  return sealed


def unevaluated(run: Run, steps: int) -> Record:
  """A record with all facts that do not need an evaluation; its FLOPs are those of `steps` steps.

  Its status is 'failed' until the caller replaces it.
  """
  config, branch = run.config, run.folder / "trunk.json"
  return Record(
    run_id=run.run_id,
    study=run.study,
    status="failed",
    seed=config.seed,
    trunk=msgspec.convert(read_json(branch), Branch) if branch.exists() else Branch(),
    model=models.shape_of(config).describe(),
    tokens=0,
    epochs_seen=0.0,
    steps=0,
    batch_tokens=train.batch_tokens(config),
    learning_rate=config.optim.lr,
    loss_train=None,
    loss_eval=None,
    loss_eval_stderr=None,
    bits_per_byte=None,
    metrics={},
    intervals={},
    params_sha256="",
    data_sha256=config.data.sha256,
    seconds=0.0,
    tokens_per_second=None,
    started_at=read_json(run.folder / "provenance.json")["started_at"],
    ended_at=now(),
    versions=record.versions(),
    devices=hardware.describe(),
    **models.counts_of(config).params(),
    **flops_of(run, steps),
  )


def flops_of(run: Run, steps: int) -> Flops:
  """The FLOPs of the first `steps` steps of a run."""
  return models.counts_of(run.config).flops(train.tokens_at(run.config, steps), run.config.parallel.remat)


def as_measured(ended: Record, measure: str) -> Record:
  """The record with a study's `measure` in place of the loss: a metric, or 1 - metric where more is better."""
  if measure == "loss" or ended.loss_eval is None:
    return ended
  loss = measured_value(ended.loss_eval, ended.metrics, measure)
  return msgspec.structs.replace(ended, loss_eval=loss, loss_eval_stderr=None)


def measured_value(loss: float, metrics: Mapping[str, float], measure: str) -> float:
  """A study's `measure` as a number to minimize: the loss, a metric, or 1 - metric."""
  if measure == "loss":
    return loss
  require(measure in metrics, f"get_study: measure: no {measure!r}{nearest(measure, metrics)}")
  return as_loss(measure, metrics[measure])


def summary(sealed: Record) -> str:
  """One line about an ended run, for the progress display."""
  if not sealed.finished:
    why = f": {sealed.error}" if sealed.error else ""
    return f"{sealed.run_id}  {sealed.status} at step {sealed.steps}{why}"
  metrics = "".join(f"  {name} {value:.4f}" for name, value in main(sealed.metrics).items())
  return (
    f"{sealed.run_id}  N {sealed.params_total:,}  D {sealed.tokens:,}  loss {sealed.loss:.4f}{metrics}"
    f"  {sealed.seconds:.1f} s"
  )


def set_record_aside(folder: epath.Path) -> None:
  """Moves the record of a run to `attempts/`. The run then counts as not ended, and any worker may train it."""
  attempts = folder / "attempts"
  attempts.mkdir(exist_ok=True)
  number = len(list(attempts.iterdir()))
  with contextlib.suppress(FileNotFoundError):  # another command has set it aside meanwhile
    (folder / "record.json").rename(attempts / f"{number:03d}.json")
