"""Writes the record of a run that has ended: its status, losses, metrics and sizes."""

import math
import time

import msgspec

from bigmodel import optim, train
from bigmodel.config import Config
from bigmodel.parallel import hosts
from bigmodel.record import Record
from bigmodel.train import results, stages
from bigmodel.train import step as steps
from bigmodel.train.evaluate import NOTHING, Evaluation
from bigmodel.train.member import Member
from bigmodel.train.metrics import read as read_metrics
from bigmodel.train.run import now
from bigmodel.types import Params


def finish(member: Member, state: steps.State, params: Params, result: Evaluation, seconds: float) -> Record:
  """Writes and returns the record of an evaluated member, after its last checkpoint and metrics are on disk."""
  run, config, diverged_at = member.run, member.run.config, int(state.diverged_at)
  began = time.monotonic()
  reason = _why_diverged(member, state, result)
  status, result = ("diverged", NOTHING) if reason else ("finished", result)
  done = run.steps if diverged_at < 0 else diverged_at
  member.metrics.finish()
  member.checkpoints.wait()
  seconds += member.seconds + time.monotonic() - began
  # Averaged parameters have other fingerprints than the saved ones.
  fingerprints = member.checkpoints.fingerprints if params is state.params else None
  ended = msgspec.structs.replace(
    results.unevaluated(run, done),
    status=status,
    error=reason,
    tokens=train.tokens_at(config, done),
    epochs_seen=member.rows.epochs_seen(max(0, done - member.stages[-1].first)),
    steps=done,
    loss_train=steps.loss_train(state, member.stages[-1].begin) if status == "finished" else None,
    loss_eval=result.loss,
    loss_eval_stderr=result.loss_stderr,
    bits_per_byte=result.bits_per_byte,
    metrics=result.metrics
    | (_noise_scale(config, state) if status == "finished" else {})
    | hosts.first(lambda: _from_metrics(member, state, status)),
    intervals=result.intervals,
    params_sha256=steps.params_sha256(params, fingerprints) if status == "finished" else "",
    seconds=seconds,
    tokens_per_second=train.tokens_at(config, done) / max(seconds, 1e-9),
    ended_at=now(),
  )
  return results.end(run, ended)


def _why_diverged(member: Member, state: steps.State, result: Evaluation) -> str:
  """The reason why a run counts as diverged, in training or in its evaluation; '' if it did not diverge.

  A run that skipped its last steps, or most steps of its last stage, also counts: it was not trained to its horizon.
  """
  step = int(state.diverged_at)
  if step >= 0:
    stage = next((stage for stage in member.stages if step < stage.stop), member.stages[-1])
    if optim.How.of(stage.config).skips:
      return f"{optim.MOST_SKIPPED} steps in a row, from step {step} on, were skipped (config.optim.skip_above)"
    return f"the loss or a parameter was not finite at step {step}"
  if not math.isfinite(result.loss):
    return "the loss of held-out data is not finite"
  if counts := _skipped(state):
    skipped, in_a_row = int(counts["skipped_steps"]), int(state.opt_state.skipped_in_a_row)
    made = int(state.step) - stages.at(member.run.config, int(state.step)).begin
    if in_a_row > 1 or 2 * skipped > made:
      to_the_end = f", the last {in_a_row} among them" if in_a_row > 1 else ""
      return f"{skipped} of {made} steps were skipped{to_the_end} (config.optim.skip_above)"
  return ""


def _from_metrics(member: Member, state: steps.State, status: str) -> dict[str, float]:
  """Metrics of the record that come from the rows of metrics.

  These are the number of skipped steps of all stages, if `optim.skip_above` is set, and for a finished run the share
  of the experts' choices that its last step dropped.
  """
  rows = {row["step"]: row for row in read_metrics(member.run.folder)}
  counts, last = _skipped(state), stages.at(member.run.config, int(state.step))
  ends = {stage.begin for stage in member.stages if 0 < stage.begin <= last.begin}  # last steps of earlier stages
  before = [rows[step]["skipped"] for step in ends if "skipped" in rows.get(step, {})]
  if before:
    counts = {"skipped_steps": float(sum(before)) + counts.get("skipped_steps", 0.0)}
  dropped = rows.get(int(state.step), {}).get("dropped_choices")
  return counts | ({"dropped_choices": dropped} if dropped is not None and status == "finished" else {})


def _skipped(state: steps.State) -> dict[str, float]:
  """The number of skipped steps of the last stage; {} if the optimizer skips none."""
  skipped = state.opt_state.skipped
  return {} if isinstance(skipped, tuple) else {"skipped_steps": float(skipped)}


def _noise_scale(config: Config, state: steps.State) -> dict[str, float]:
  """The gradient noise scale in tokens (or examples); {} if it was not measured."""
  rows = steps.noise_scale(state.noise) if config.train.noise_scale else math.nan
  return {"noise_scale": float(rows) * train.batch_tokens(config) / config.train.batch_size} if rows > 0 else {}
