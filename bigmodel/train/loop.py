"""The training loop of one program: one run, or several runs of one shape side by side."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bigmodel import hardware, models, optim, train
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data, Datasets
from bigmodel.errors import Interrupted
from bigmodel.files import remove, write_json, write_jsonl
from bigmodel.parallel import hosts
from bigmodel.train import programs, results, stages, weights
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints, newest_common
from bigmodel.train.display import Display
from bigmodel.train.evaluate import NOTHING, Evaluation, judge, loss_and_metrics, measure
from bigmodel.train.member import Member, open_member, under_way
from bigmodel.train.metrics import read as read_metrics
from bigmodel.train.programs import Program
from bigmodel.train.run import Run, now, open_folder, write_status
from bigmodel.train.stop import LOST, Stop
from bigmodel.train.supervise import Watchdog
from bigmodel.train.watch import Clock, Watch, finite, unit_of

VALUES_BYTES = 1 << 30  # of what is evaluated at once


def train_runs(
  runs: list[Run],
  data: Data | Datasets,
  display: Display,
  stop: Stop,
  expected: float = 0.0,
  profile: int = 0,
  branches: Sequence[Run] = (),
  until: int = 0,
) -> list[dict[str, Any]]:
  """Trains runs of one shape in one program, from wherever they are; returns their records.

  Each has a horizon of its own; one that has come to its end is evaluated while the others wait, and rests.

  `branches` are runs that go on from a step of one of them: each gets a checkpoint there. With `until` they pause at
  that step, saved and evaluated on held-out data, and their `rungs.json` says with what result; no record is written.

  Raises `Interrupted` once all is saved after a signal, `CheckpointError` when a
  checkpoint cannot be written. The bits of each member do not depend on the others.
  """
  members = [open_member(run, data(run.config) if isinstance(data, Datasets) else data, stop) for run in runs]
  watchdog = Watchdog(runs[0].config.train.step_timeout)
  with contextlib.ExitStack() as at_the_end:
    for member in members:
      at_the_end.callback(member.checkpoints.close)
    at_the_end.callback(watchdog.close)
    return _train(members, display, stop, expected, profile, watchdog, branches, until)


def _stage(members: list[Member], stage: stages.Stage) -> tuple[Program, Any]:
  """The program of a stage of all members, and their hyperparameters in it; gives them the rows that it trains on."""
  program = programs.program(stage.config, len(members))
  own = [next(s for s in m.stages if s.first == stage.first) for m in members]
  for member, one in zip(members, own, strict=True):
    member.rows = pipeline.train_pipeline(one.config, member.data, one.stop - one.first, one.before)
  return program, program.put_hyperparameters(
    [optim.hyperparameters(one.config, one.horizon, one.begin) for one in own]
  )


def _restore(program: Program, members: list[Member], start: int) -> Any:
  """The states of step `start`, which are the initial ones at 0; a member that has ended is past its horizon."""
  states = []
  for member in members:
    if member.ended is not None:
      states.append(dataclasses.replace(program.init(member.run.config.seed), step=np.int32(member.run.steps)))
      continue
    if start:
      weights.require_padding(member.run.config, member.checkpoints, start, program.shapes.params)
      state = member.checkpoints.restore(start, program.shapes)
    else:
      state = weights.start(member.run.config, program.init(member.run.config.seed), program.optimizer_state)
      hosts.first(lambda member=member: remove(member.run.folder / "trunk.json"))
    states.append(state)
    hosts.barrier(f"{member.run.run_id}/restored")
    member.checkpoints.drop_after(start)  # damaged, or past a companion's
    member.metrics.cut(start)
  return program.place(states)


def _require_held(stop: Stop) -> None:
  """Ends the work of all processes of a job where another worker has taken over: this one owns these files no more."""
  if hosts.first(stop.lost):
    raise Interrupted(LOST)


def _train(
  members: list[Member],
  display: Display,
  stop: Stop,
  expected: float,
  profile: int,
  watchdog: Watchdog,
  branches: Sequence[Run],
  until: int,
) -> list[dict[str, Any]]:
  if not (waiting := under_way(members)):
    return [member.ended for member in members if member.ended]
  longest = max(waiting, key=lambda member: member.run.steps)
  first, config, total = longest.run, longest.run.config, longest.run.steps
  display.begin(title(members), total, expected)
  end = min(total, until or total)
  start = newest_common([member.checkpoints for member in waiting], end) or 0
  ahead = [stage for stage in longest.stages if stage.stop >= start]  # what was saved is of the first of these
  program, hyperparameters = _stage(members, ahead[0])
  state = _restore(program, members, start)
  # Where it has to be measured, it is before that would disturb a step.
  watch = Watch(members, start, total, display, Clock(len(waiting)), _peak(program, config))
  pending: tuple[int, int, Callable[[], dict[str, np.ndarray]], list[Any] | None] | None = None
  look_every = config.train.layers_every
  done = start
  with hosts.Agreement(stop.requested) as agreement:
    while done < end and under_way(members):
      step = done
      if profile and step == start + 2:  # the first steps compile
        jax.profiler.start_trace(str(first.folder / "logs" / "profile"))
      if step == ahead[0].stop:
        before, pending = pending, None
        if before is not None and watch.read(*before):
          break
        ended, of_ended = ahead.pop(0), hyperparameters
        program, hyperparameters = _stage(members, ahead[0])
        if step == ahead[0].begin:  # a stage, and not another batch size of the same one
          state = program.next_stage(state, of_ended, ended.config, ahead[0].config)
        watch.pace, watch.peak = math.inf, _peak(program, config)  # its batches may be larger, and so its mesh
      marks = [
        end,
        ahead[0].stop,
        *(m.run.steps for m in members),
        *(run.branch.step for run in branches if run.branch),
      ]
      marks.append(step + config.train.checkpoint_every - step % config.train.checkpoint_every)
      most = 1 if look_every or profile else min(program.stride, watch.stride())
      count = min(min(mark for mark in marks if mark > step) - step, most)
      done = step + count
      rows = program.put_rows(*([m.rows.part(k - ahead[0].first) for m in members] for k in range(step, done)))
      look = look_every and done % look_every == 0
      layers = program.layer_statistics(state, rows, hyperparameters) if look else None
      state, metrics = program.step(state, rows, hyperparameters)
      before, pending = pending, (step, count, functools.partial(program.fetch_metrics, metrics), layers)
      if before is not None and watch.read(*before):
        pending = None
        break  # every member has diverged
      if profile and start + 2 <= step == min(start + 1 + profile, total - 1):
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
      watchdog.beat()
      leaving = [run for run in branches if run.branch is not None and run.branch.step == done]
      if leaving:
        before, pending = pending, None
        if watch.read(*before):
          break
        _require_held(stop)
        _leave(program, members, leaving, state, stop)
        watchdog.beat()
      ending = [m for m in members if m.run.steps == done < total and m.ended is None]
      if ending:
        before, pending = pending, None
        if before is not None and watch.read(*before):
          break
        _require_held(stop)
        host, spent = program.fetch(state), watch.clock.spent()
        _end(program, members, ending, host, done, spent, watchdog)
        del host  # as large as the whole pack
        watch.clock.go_on(len(under_way(members)))
      due = done % config.train.checkpoint_every == 0 and done < total
      for member in members:
        member.checkpoints.check()
      stopping = agreement.stop_before(done)
      if due or stopping:
        before, pending = pending, None
        if before is not None and watch.read(*before):
          break
        _require_held(stop)
        _end_diverged(program, members, state, done, watch.clock, watchdog)
        _save(program, members, under_way(members), state, done)
        watchdog.beat()
      if stopping:
        spent = watch.clock.spent()
        for member in members:
          member.checkpoints.wait()
          watchdog.beat()
          if member.ended is None:
            write_status(member.run, "interrupted", done, member.seconds + spent)
        display.end()
        raise Interrupted(f"{title(members)} saved at step {done} of {total}")
  if pending is not None:
    watch.read(*pending)
  watchdog.close()
  _require_held(stop)
  state, seconds = program.fetch(state), watch.clock.spent()
  places = [i for i, member in enumerate(members) if member.ended is None]
  last = max((int(program.member(state, i).step) for i in places), default=done)
  if until and until < total:
    _end_diverged(program, members, state, last, watch.clock, watchdog)
    _save(program, members, under_way(members), state, last)
    _pause(program, members, state, until, watch.clock.spent(), watchdog)
    display.end()
    return []
  if under_way(members):
    _end(program, members, under_way(members), state, last, seconds, watchdog)
  hosts.barrier(f"{first.run_id}/ended")
  records = [member.ended for member in members if member.ended]
  display.end("\n".join(results.summary(r) for r in records))
  return records


def _peak(program: Program, config: Any) -> float:
  return hardware.peak_flops(list(program.mesh.devices.flat), config.train.compute_dtype)


def _pause(program: Program, members: list[Member], state: Any, step: int, seconds: float, watchdog: Watchdog) -> None:
  """Evaluates members that have come to a rung, once each, and writes down what they came to."""
  waiting = [m for m in under_way(members) if hosts.first(lambda m=m: str(step) not in results.read_rungs(m.run))]
  for rows, places in _parts(program, members, waiting):
    began, evaluated = time.monotonic(), _measured(program, members, state, rows, places, watchdog.beat)
    spent = (time.monotonic() - began) / len(places)
    for i, (own, _, values) in zip(places, evaluated, strict=True):
      member = members[i]
      rung: results.Rung = {"loss_train": None, "loss_eval": None, "metrics": {}}
      if values is not None:
        found = loss_and_metrics(member.run.config, rows, values)
        if math.isfinite(found["loss_eval"]):
          loss_train = finite(steps.loss_train(own, stages.at(member.run.config, int(own.step)).begin))
          rung = {"loss_train": loss_train, "loss_eval": found["loss_eval"], "metrics": found["metrics"]}
      member.checkpoints.wait()
      write_status(member.run, "paused", step, member.seconds + seconds + spent)
      rungs = {**results.read_rungs(member.run), str(step): rung}
      path = member.run.folder / "rungs.json"
      hosts.first(lambda path=path, rungs=rungs: write_json(path, rungs))  # last, so that what it tells of is saved


def _parts(program: Program, members: list[Member], some: list[Member]) -> list[tuple[pipeline.EvalRows, list[int]]]:
  """Places of some members in parts that are evaluated at once, on the same rows."""
  parts = []
  for data in {id(member.data): member.data for member in some}.values():
    places = [i for i, member in enumerate(members) if member in some and member.data is data]
    rows = pipeline.eval_rows(members[places[0]].run.config, data)
    most = max(1, min(program.at_once, VALUES_BYTES // (16 * max(1, rows.clusters.size))))
    parts += [(rows, places[k : k + most]) for k in range(0, len(places), most)]
  return parts


def _measured(
  program: Program,
  members: list[Member],
  state: Any,
  rows: pipeline.EvalRows,
  places: list[int],
  beat: Callable[[], None],
) -> list[tuple[steps.State, Any, Any]]:
  """Of each of the members at `places`: its state, the parameters that are evaluated, and their values if it is sound.

  `state` is on the host.
  """
  configs, own = [members[i].run.config for i in places], [program.member(state, i) for i in places]
  in_force = [stages.at(c, int(one.step)).config for c, one in zip(configs, own, strict=True)]
  params = [optim.evaluated(c, one.params, one.opt_state) for c, one in zip(in_force, own, strict=True)]
  sound = [not _has_diverged(one) for one in own]
  values = iter(measure(program, list(itertools.compress(params, sound)), configs[0], rows, beat))
  return [(one, p, next(values) if s else None) for one, p, s in zip(own, params, sound, strict=True)]


def _has_diverged(state: steps.State) -> bool:
  """Of one member. The metrics of its last step have been read, so that there is nothing to wait for."""
  return int(state.diverged_at) >= 0


def _end_diverged(
  program: Program, members: list[Member], state: Any, step: int, clock: Clock, watchdog: Watchdog
) -> None:
  """Writes the records of members that have diverged, before the others are saved.

  They have no checkpoint of this step, which resuming the others would look for.
  """
  state = program.fetch(state)
  places = [i for i, member in enumerate(members) if member.ended is None]
  if diverged := [members[i] for i in places if _has_diverged(program.member(state, i))]:
    _end(program, members, diverged, state, step, clock.spent(), watchdog)
    clock.go_on(len(under_way(members)))


def _save(program: Program, members: list[Member], some: list[Member], state: Any, step: int) -> None:
  """Saves those of `some` that have not diverged: the newest checkpoint of one that has is from before it did."""
  state = program.fetch(state)
  states = {index: program.member(state, index) for index, member in enumerate(members) if member in some}
  for index in states:
    members[index].metrics.flush()
  states = {index: own for index, own in states.items() if not _has_diverged(own)}
  # All of these before the threads that write compete with this one; copies one by one.
  marks = {index: hosts.fingerprints(own) for index, own in states.items()}
  for index, own in states.items():
    members[index].checkpoints.save(step, own, marks[index])


def _leave(program: Program, members: list[Member], leaving: list[Run], state: Any, stop: Stop) -> None:
  """Gives runs that begin as members do a checkpoint and the metrics so far; each goes on by resuming."""
  state = program.fetch(state)
  for run in leaving:
    assert run.branch is not None
    index, member = next((i, m) for i, m in enumerate(members) if m.run.run_id == run.branch.trunk)
    if _has_diverged(program.member(state, index)):
      continue  # it will find out by itself, from its first step on
    hosts.first(lambda run=run: open_folder(run))
    member.metrics.flush()
    rows = [row for row in read_metrics(member.run.folder) if row["step"] <= run.branch.step]
    hosts.first(lambda run=run, rows=rows: write_jsonl(run.folder / "metrics.jsonl", rows))
    branch = dataclasses.asdict(run.branch)
    hosts.first(lambda run=run, branch=branch: write_json(run.folder / "trunk.json", branch))
    checkpoints = Checkpoints(run.folder / "checkpoints", run.config.train.keep, stop.lost)
    checkpoints.save(run.branch.step, program.member(state, index))
    checkpoints.close()


def _end(
  program: Program,
  members: list[Member],
  some: list[Member],
  state: Any,
  step: int,
  seconds: float,
  watchdog: Watchdog,
) -> None:
  """Saves and evaluates some members, as many at once as the program can, and writes their records."""
  parts = _parts(program, members, some)
  given_up = threading.Event()

  def beat() -> None:
    watchdog.beat()
    if given_up.is_set():
      raise concurrent.futures.CancelledError

  def measured(rows: pipeline.EvalRows, places: list[int]) -> list[tuple[steps.State, Any, Any]]:
    return _measured(program, members, state, rows, places, beat)

  # Of a pack on a CPU the first compute while all are saved, and the next while records are written.
  pool = concurrent.futures.ThreadPoolExecutor(1, "evaluation") if program.at_once > 1 else None
  begin = lambda k: pool.submit(measured, *parts[k]).result if pool else functools.partial(measured, *parts[k])
  try:
    told, began = begin(0), time.monotonic()
    _save(program, members, some, state, step)
    seconds += (time.monotonic() - began) / len(some)
    for k, (rows, places) in enumerate(parts):
      began, found = time.monotonic(), told()
      spent = (time.monotonic() - began) / len(places)
      told = begin(k + 1) if k + 1 < len(parts) else told
      for i, (own, params, values) in zip(places, found, strict=True):
        began, member = time.monotonic(), members[i]
        result = judge(member.run.config, rows, values) if values is not None else NOTHING
        member.ended = _finish(member, own, params, result, seconds + spent + time.monotonic() - began)
        watchdog.beat()
  finally:
    given_up.set()
    if pool:
      pool.shutdown(wait=False, cancel_futures=True)


def _finish(member: Member, own: steps.State, params: Any, result: Evaluation, seconds: float) -> dict[str, Any]:
  """Writes the record of a member that was evaluated while it was saved, last of all and once."""
  run, config, diverged_at = member.run, member.run.config, int(own.diverged_at)
  began = time.monotonic()
  why = _why_diverged(member, own, result)
  status, result = ("diverged", NOTHING) if why else ("finished", result)
  done = run.steps if diverged_at < 0 else diverged_at
  member.metrics.finish()
  member.checkpoints.wait()
  seconds += member.seconds + time.monotonic() - began
  marks = member.checkpoints.marks if params is own.params else None  # an average of them has others
  facts = results.facts_of(run) | {
    "status": status,
    "error": why,
    "tokens": train.tokens_at(config, done),
    "epochs_seen": member.rows.epochs_seen(max(0, done - member.stages[-1].first)),
    "steps": done,
    **results.flops_of(run, done),
    "loss_train": steps.loss_train(own, member.stages[-1].begin) if status == "finished" else None,
    "loss_eval": result.loss,
    "loss_eval_stderr": result.loss_stderr,
    "bits_per_byte": result.bits_per_byte,
    "metrics": result.metrics
    | (_noise_scale(config, own) if status == "finished" else {})
    | hosts.first(lambda: _from_metrics(member, own, status)),
    "intervals": {name: list(pair) for name, pair in result.intervals.items()},
    "params_sha256": steps.params_sha256(params, marks) if status == "finished" else "",
    "seconds": seconds,
    "tokens_per_second": train.tokens_at(config, done) / max(seconds, 1e-9),
    "ended_at": now(),
  }
  return results.end(run, facts)


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


def _noise_scale(config: Any, state: steps.State) -> dict[str, float]:
  """In tokens (or examples), where it was measured."""
  rows = steps.noise_scale(state.noise) if config.train.noise_scale else math.nan
  return {"noise_scale": float(rows) * train.batch_tokens(config) / config.train.batch_size} if rows > 0 else {}


def title(members: list[Member]) -> str:
  """What the display calls a program: 'decoder of 34k, 4.1M tokens', with the number of members."""
  config = members[0].run.config
  tokens = train.tokens_at(config, members[0].run.steps)
  many = f"{len(members)} x " if len(members) > 1 else ""
  size = models.counts_of(config).params_total
  short = lambda n: f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k"
  return f"{many}{config.model.family} of {short(size)}, {short(tokens)} {unit_of(config)}"
