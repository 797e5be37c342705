"""The record of a run that has come to its end: how it ended, and what it came to."""

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


def finish(member: Member, own: steps.State, params: Params, result: Evaluation, seconds: float) -> Record:
  """Writes the record of a member that was evaluated while it was saved, last of all and once."""
  run, config, diverged_at = member.run, member.run.config, int(own.diverged_at)
  began = time.monotonic()
  why = _why_diverged(member, own, result)
  status, result = ("diverged", NOTHING) if why else ("finished", result)
  done = run.steps if diverged_at < 0 else diverged_at
  member.metrics.finish()
  member.checkpoints.wait()
  seconds += member.seconds + time.monotonic() - began
  marks = member.checkpoints.fingerprints if params is own.params else None  # an average of them has others
  ended = msgspec.structs.replace(
    results.unevaluated(run, done),
    status=status,
    error=why,
    tokens=train.tokens_at(config, done),
    epochs_seen=member.rows.epochs_seen(max(0, done - member.stages[-1].first)),
    steps=done,
    loss_train=steps.loss_train(own, member.stages[-1].begin) if status == "finished" else None,
    loss_eval=result.loss,
    loss_eval_stderr=result.loss_stderr,
    bits_per_byte=result.bits_per_byte,
    metrics=result.metrics
    | (_noise_scale(config, own) if status == "finished" else {})
    | hosts.first(lambda: _from_metrics(member, own, status)),
    intervals=result.intervals,
    params_sha256=steps.params_sha256(params, marks) if status == "finished" else "",
    seconds=seconds,
    tokens_per_second=train.tokens_at(config, done) / max(seconds, 1e-9),
    ended_at=now(),
  )
  return results.end(run, ended)


def _why_diverged(member: Member, own: steps.State, result: Evaluation) -> str:
  """What a record says of a run that diverged, in training or when it was evaluated; empty of one that did not.

  One that skipped its last steps, or most of its last stage, has not learned what its horizon says.
  """
  step = int(own.diverged_at)
  if step >= 0:
    stage = next((stage for stage in member.stages if step < stage.stop), member.stages[-1])
    if optim.How.of(stage.config).skips:
      return f"{optim.MOST_SKIPPED} steps in a row, from step {step} on, were skipped (config.optim.skip_above)"
    return f"the loss or a parameter was not finite at step {step}"
  if not math.isfinite(result.loss):
    return "the loss of held-out data is not finite"
  if counts := _skipped(own):
    skipped, in_a_row = int(counts["skipped_steps"]), int(own.opt_state.skipped_in_a_row)
    made = int(own.step) - stages.at(member.run.config, int(own.step)).begin
    if in_a_row > 1 or 2 * skipped > made:
      to_the_end = f", the last {in_a_row} among them" if in_a_row > 1 else ""
      return f"{skipped} of {made} steps were skipped{to_the_end} (config.optim.skip_above)"
  return ""


def _from_metrics(member: Member, own: steps.State, status: str) -> dict[str, float]:
  """What a record has from the rows of metrics: the steps that were skipped in all stages, where they can be.

  And of a finished run the share of the experts' choices that its last step dropped.
  """
  rows = {row["step"]: row for row in read_metrics(member.run.folder)}
  counts, last = _skipped(own), stages.at(member.run.config, int(own.step))
  ends = {stage.begin for stage in member.stages if 0 < stage.begin <= last.begin}  # of stages that are over
  before = [rows[step]["skipped"] for step in ends if "skipped" in rows.get(step, {})]
  if before:
    counts = {"skipped_steps": float(sum(before)) + counts.get("skipped_steps", 0.0)}
  dropped = rows.get(int(own.step), {}).get("dropped_choices")
  return counts | ({"dropped_choices": dropped} if dropped is not None and status == "finished" else {})


def _skipped(state: steps.State) -> dict[str, float]:
  """The steps of the last stage that were skipped, where steps can be."""
  skipped = state.opt_state.skipped
  return {} if isinstance(skipped, tuple) else {"skipped_steps": float(skipped)}


def _noise_scale(config: Config, state: steps.State) -> dict[str, float]:
  """In tokens (or examples), where it was measured."""
  rows = steps.noise_scale(state.noise) if config.train.noise_scale else math.nan
  return {"noise_scale": float(rows) * train.batch_tokens(config) / config.train.batch_size} if rows > 0 else {}
