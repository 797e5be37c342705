"""Steps that are skipped change nothing, and a run that diverges leaves no checkpoint of what it became."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from handmade import labels_of  # its folder is on the path of pytest

from bigmodel import optim, record, study, tasks
from bigmodel.config import flatten
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Pipeline
from bigmodel.errors import Interrupted, UserError
from bigmodel.files import absolute, write_json
from bigmodel.optim import updates
from bigmodel.train import metrics, parameters, programs, trained, weights
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints, to_flat
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.programs import choose
from bigmodel.train.run import Branch, Run
from bigmodel.train.stop import StopRequest

BAD = 250  # a byte that the corpus does not have


@pytest.fixture
def broken(monkeypatch):
  """`{data.seed: steps}`: in batches of these steps the loss is infinite, as one that overflows is."""
  chosen: dict[int, Sequence[int]] = {}
  build, batch = tasks.build, Pipeline.batch

  def built(config):
    task = build(config)

    def objective(apply, rows, h, key):
      aim, measured = task.objective(apply, rows, h, key)
      factor = jnp.where(jnp.any(rows[:, 0] == BAD), jnp.inf, 1.0)
      return factor * aim, measured | {"loss": factor * measured["loss"]}

    return dataclasses.replace(task, objective=objective)

  def with_bad_tokens(self, step, *share):
    rows = batch(self, step, *share)
    if step in chosen.get(self.seed, ()):
      rows[:, 0] = BAD
    return rows

  monkeypatch.setattr(tasks, "build", built)
  monkeypatch.setattr(Pipeline, "batch", with_bad_tokens)
  for name in ("_SINGLE", "_COMPILED_LANES", "_PACKS"):
    monkeypatch.setattr(choose, name, {})  # others' losses do not break
  return chosen


def run_of(config, folder, **changes):
  return Run(study.with_overrides(config, changes), absolute(folder))


def train(runs, corpus, stop=None, **options):
  return train_runs(runs, corpus, Display(quiet=True), stop or StopRequest(), Options(**options))


def newest(run):
  """The step of the newest checkpoint, and whether all in it is finite."""
  store = Checkpoints(run.folder / "checkpoints")
  step = store.newest_sound()
  assert step is not None
  arrays = store.arrays(step, "")
  store.close()
  return step, all(np.isfinite(x).all() for x in arrays.values())


def assert_unchanged(before, after, *but):
  before, after = to_flat(before), to_flat(after)
  assert before.keys() == after.keys()
  changed = {name for name, value in before.items() if not np.array_equal(value, after[name])}
  assert changed == set(but)


@pytest.mark.parametrize(("name", "average"), [(name, 0.0) for name in optim.NAMES] + [("adamw", 0.9)])
def test_no_optimizer_learns_from_a_step_that_is_skipped(name, average):
  config = study.default_config()
  config.optim.update(name=name, average=average, skip_above=5.0, lr=1.0 if name == "prodigy" else 0.01)
  h = optim.hyperparameters(config, 40)
  rng = np.random.default_rng(0)
  params = {"blocks": {"w": rng.standard_normal((2, 6, 8))}, "embedding": rng.standard_normal((10, 6))}
  params = jax.tree.map(np.float32, params)
  how = optim.How.of(config, labels_of(params))
  state = optim.initial_state(how, params)
  loss = lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

  @jax.jit
  def step(params, state, i, scale, finite):
    grads = jax.tree.map(lambda g: scale * g, jax.grad(loss)(params))
    return optim.update(how, grads, state, params, i, h, loss, finite)[:2]

  last = np.int32(updates.SETTLED)
  for i in range(updates.SETTLED + 1):
    params, state = step(params, state, np.int32(i), 1.0, True)
  for count, (scale, finite) in enumerate([(np.nan, True), (1.0, False), (1e6, True)], 1):
    after = step(params, state, last, scale, finite)
    assert_unchanged((params, state), after, "1.skipped", "1.skipped_in_a_row")
    params, state = after
    assert int(state.skipped) == int(state.skipped_in_a_row) == count
  after, state = step(params, state, last, 1.0, True)
  assert int(state.skipped_in_a_row) == 0
  assert not np.array_equal(after["embedding"], params["embedding"])


@pytest.mark.parametrize(("members", "sizes"), [(1, {}), (2, {}), (2, {"fsdp": 2})], ids=str)
def test_a_skipped_step_is_counted_and_changes_nothing_else(resolved, broken, members, sizes):
  config, corpus = resolved
  config.model.vocab = 264  # divides by the mesh
  config.parallel.update(**sizes)
  config.optim.skip_above = 5.0
  config.train.update(accumulate=2, noise_scale=True)
  broken[0] = range(2, 3)
  program, rows = programs.program(config, members), pipeline.train_pipeline(config, corpus, 4)
  state = program.place([program.init(seed) for seed in range(members)])
  h = program.put_hyperparameters([optim.hyperparameters(config, 4)] * members)
  member = lambda state: program.member(jax.device_get(state), members - 1)
  seen = [member(state)]
  for step in range(4):
    state, _ = program.step(state, program.put_rows([rows.batch(step)] * members), h)
    seen.append(member(state))
  assert_unchanged(seen[2], seen[3], "step", "opt_state.skipped", "opt_state.skipped_in_a_row")
  assert int(seen[4].opt_state.skipped) == 1
  assert int(seen[4].opt_state.skipped_in_a_row) == 0
  assert int(seen[4].diverged_at) == -1
  # The average is of the three steps that counted.
  assert steps.loss_train(seen[4]) == pytest.approx(float(seen[4].loss_ema) / (1 - steps.EMA**3))


def test_a_run_survives_bad_batches_and_skips_the_same_when_it_resumes(resolved, broken, tmp_path, stop_at):
  config, corpus = resolved
  config.optim.skip_above, config.train.log_every = 5.0, 1
  broken[0] = range(8, 11)
  whole = run_of(config, tmp_path / "whole")
  (ended,) = train([whole], corpus)
  assert ended.status == "finished"
  assert ended.loss_train == pytest.approx(ended.loss_eval, rel=0.5)
  assert ended.metrics["skipped_steps"] == 3
  assert [row["skipped"] for row in metrics.read(whole.folder)] == [0] * 8 + [1, 2] + [3] * 20
  assert [row["step"] for row in metrics.read(whole.folder) if row["loss"] is None] == [9, 10, 11]
  cut = run_of(config, tmp_path / "cut")
  for looks in (8, 15):  # among the bad batches, and after them
    with pytest.raises(Interrupted):
      train([cut], corpus, stop_at(looks))
  assert train([cut], corpus)[0].result_sha256 == ended.result_sha256


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2}], ids=str)
def test_members_of_a_pack_skip_for_themselves(resolved, broken, tmp_path, sizes):
  config, corpus = resolved
  config.model.vocab = 264
  config.parallel.update(**sizes)
  config.optim.skip_above = 5.0
  runs = [run_of(config, tmp_path / str(seed), **{"data.seed": seed}) for seed in range(2)]
  (_, plain) = train([dataclasses.replace(run, folder=run.folder / "plain") for run in runs], corpus)
  broken[0] = range(4, 40, 5)
  first, second = train(runs, corpus)
  (alone,) = train([dataclasses.replace(runs[0], folder=tmp_path / "alone")], corpus)
  assert first.status == "finished"
  assert first.loss_eval == pytest.approx(alone.loss_eval, rel=1e-4)
  assert first.loss_train == pytest.approx(alone.loss_train, rel=1e-4)
  assert second.result_sha256 == plain.result_sha256
  assert [metrics.read(run.folder)[-1]["skipped"] for run in runs] == [6, 0]


@pytest.mark.parametrize(
  ("bad", "error"),
  [
    (range(30), "30 of 30 steps were skipped, the last 30 among them"),
    (range(28, 30), "2 of 30 steps were skipped, the last 2 among them"),
    ([*range(8), *range(9, 17)], "16 of 30 steps were skipped"),
    ([*range(14), 29], ""),  # half, and the very last
  ],
  ids=["all", "the last", "most", "half"],
)
def test_a_run_that_skips_most_steps_or_its_last_ones_has_not_finished(resolved, broken, tmp_path, bad, error):
  config, corpus = resolved
  config.optim.skip_above = 5.0
  broken[0] = bad
  (ended,) = train([run_of(config, tmp_path / "run")], corpus)
  assert ended.error == (f"{error} (config.optim.skip_above)" if error else "")
  assert ended.status == ("diverged" if error else "finished")
  assert (ended.loss_eval is None) == (ended.loss_train is None) == bool(error)
  assert ended.metrics["skipped_steps"] == len(bad)


def test_skipped_steps_of_all_stages_are_counted(resolved, broken, tmp_path, stop_at):
  """Also where the last stage skips none, and where a run was interrupted in its second stage."""
  config, corpus = resolved
  config.train.steps = 6
  config.train.stages = ("optim.lr=0.02 optim.skip_above=5 train.steps=7",)
  broken[0] = (1, 3)  # of each stage
  config.optim.skip_above = 5.0
  whole, cut = run_of(config, tmp_path / "whole"), run_of(config, tmp_path / "cut")
  (ended,) = train([whole], corpus)
  assert ended.metrics["skipped_steps"] == 4
  with pytest.raises(Interrupted):
    train([cut], corpus, stop_at(9))
  assert train([cut], corpus)[0].result_sha256 == ended.result_sha256
  broken[0] = (1,)
  config.optim.skip_above = 0.0
  (ended,) = train([run_of(config, tmp_path / "other")], corpus)
  assert ended.status == "diverged"  # the last stage does not skip the bad batch
  assert ended.metrics["skipped_steps"] == 1


def test_verbs_say_that_a_checkpoint_is_of_a_run_that_diverged(resolved, broken, tmp_path, caplog):
  config, corpus = resolved
  config.optim.skip_above, config.train.steps = 5.0, 6
  broken[0] = (4, 5)
  run = run_of(config, tmp_path / "run")
  (ended,) = train([run], corpus)
  assert ended.status == "diverged"
  own = config.copy_and_resolve_references()
  own.train.init_from = str(run.folder)
  for use_it in (lambda: weights.resolve(own), lambda: trained.load(str(run.folder))):
    parameters._warn.cache_clear()
    caplog.clear()
    use_it()
    (said,) = [one.message for one in caplog.records if "diverged" in one.message]
    assert said.startswith(f"{run.folder}: the checkpoint of step 6 is of a run that ended as diverged: 2 of 6 steps")


def test_many_skips_in_a_row_end_a_run(resolved, broken, tmp_path, stop_at):
  config, corpus = resolved
  config.optim.skip_above = 5.0
  config.data.repeat = True
  config.train.update(steps=80)
  broken[0] = range(13, 100)
  run = run_of(config, tmp_path / "whole")
  (ended,) = train([run], corpus)
  assert (ended.status, ended.steps, ended.loss_eval) == ("diverged", 13, None)
  assert ended.error == "50 steps in a row, from step 13 on, were skipped (config.optim.skip_above)"
  assert newest(run) == (60, True)  # the step at which it gave up is 62
  cut = run_of(config, tmp_path / "cut")
  for looks in (5, 20):
    with pytest.raises(Interrupted):
      train([cut], corpus, stop_at(looks))
  assert train([cut], corpus)[0].result_sha256 == ended.result_sha256


@pytest.mark.parametrize(("log_every", "checkpoint_every", "expected"), [(1, 1, 17), (5, 5, 15), (5, 100, None)])
def test_the_newest_checkpoint_of_a_diverged_run_is_from_before(
  resolved, broken, tmp_path, log_every, checkpoint_every, expected
):
  """Between the steps that are logged as well."""
  config, corpus = resolved
  config.train.update(log_every=log_every, checkpoint_every=checkpoint_every)
  broken[0] = range(17, 18)
  run = run_of(config, tmp_path / "run")
  (ended,) = train([run], corpus)
  assert (ended.status, ended.steps) == ("diverged", 17)
  assert ended.error == "the loss or a parameter was not finite at step 17"
  if expected is None:
    assert Checkpoints(run.folder / "checkpoints").steps() == []
  else:
    assert newest(run) == (expected, True)


def test_parameters_that_overflow_in_the_very_last_step_are_no_checkpoint(resolved, tmp_path):
  """The loss of that step was finite."""
  config, corpus = resolved
  config.optim.update(name="sgd", lr=3e38, clip=1e30, warmup=0.0)
  config.train.steps = 1
  run = run_of(config, tmp_path / "run")
  (ended,) = train([run], corpus)
  assert (ended.status, ended.steps, ended.tokens) == ("diverged", 1, ended.batch_tokens)
  assert Checkpoints(run.folder / "checkpoints").steps() == []


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2}], ids=str)
def test_companions_of_a_diverged_member_resume_where_they_were(resolved, broken, tmp_path, stop_at, sizes):
  """The longest member diverges; it has its record and its last sound checkpoint, and the others go on without it."""
  config, corpus = resolved
  config.model.vocab = 264
  config.parallel.update(**sizes)
  broken[0] = range(13, 14)

  def members(name):
    horizons = (30, 26, 26)
    return [
      run_of(config, tmp_path / name / str(i), **{"data.seed": i, "train.steps": horizon})
      for i, horizon in enumerate(horizons)
    ]

  whole = members("whole")
  ended = train(whole, corpus)
  assert [one.status for one in ended] == ["diverged", "finished", "finished"]
  assert newest(whole[0]) == (10, True)
  assert [newest(run)[0] for run in whole[1:]] == [26, 26]
  cut = members("cut")
  with pytest.raises(Interrupted, match="saved at step"):
    train(cut, corpus, stop_at(22 if sizes else 3))
  diverged = record.read(cut[0].folder)
  assert diverged is not None
  times = {name: getattr(diverged, name) for name in ("seconds", "tokens_per_second", "started_at", "ended_at")}
  assert diverged == msgspec.structs.replace(ended[0], **times)
  assert newest(cut[0])[0] == 10 < 18 <= newest(cut[1])[0] < 26
  again = train(cut, corpus)
  assert [one.result_sha256 for one in again] == [one.result_sha256 for one in ended]


def test_a_member_that_diverges_before_a_rung_has_a_record_there(resolved, broken, tmp_path):
  config, corpus = resolved
  broken[0] = range(3, 4)
  runs = [run_of(config, tmp_path / str(seed), **{"data.seed": seed}) for seed in range(2)]
  assert train(runs, corpus, until=10) == []
  diverged = record.read(runs[0].folder)
  assert diverged is not None
  assert diverged.status == "diverged"
  assert not (runs[0].folder / "rungs.json").exists()
  assert record.read(runs[1].folder) is None
  assert newest(runs[1]) == (10, True)


def test_a_trunk_that_has_diverged_leaves_no_branch_a_checkpoint(resolved, broken, tmp_path):
  config, corpus = resolved
  broken[0] = range(3, 4)
  runs = [run_of(config, tmp_path / str(seed), **{"data.seed": seed}) for seed in range(2)]
  branches = [dataclasses.replace(run, folder=run.folder / "branch", branch=Branch(run.run_id, 20)) for run in runs]
  train(runs, corpus, branches=branches)
  assert not branches[0].folder.exists()
  assert newest(branches[1]) == (20, True)


@pytest.fixture
def not_finite(resolved, tmp_path):
  """The folder of a run whose parameters are not finite, as an import of other versions could leave it."""
  config, _ = resolved
  program = programs.program(config)
  state = jax.device_get(program.init(0))
  state.params["embedding"] = np.full_like(state.params["embedding"], np.nan)
  folder = absolute(tmp_path / "not_finite")
  store = Checkpoints(folder / "checkpoints")
  store.save(7, state)
  store.close()
  write_json(folder / "config.json", flatten(config))
  return folder


@pytest.mark.parametrize("verb", ["eval", "choices", "completions", "generate", "export"])
def test_verbs_refuse_parameters_that_are_not_finite(not_finite, tmp_path, inside, verb):
  (tmp_path / "choices.jsonl").write_text('{"prompt": "the ", "choices": ["model", "word"], "answer": 0}\n')
  (tmp_path / "completions.jsonl").write_text('{"prompt": "the ", "completion": "model"}\n')
  arguments = {
    "eval": ["eval"],
    "choices": ["eval", "--choices", tmp_path / "choices.jsonl"],
    "completions": ["eval", "--completions", tmp_path / "completions.jsonl"],
    "generate": ["generate", "--prompt", "the ", "--tokens", "4"],
    "export": ["export", "--to", tmp_path / "exported", "--type", "llama"],
  }[verb]
  code, out, err = inside(*arguments, "--workdir", not_finite)
  assert code == 2
  assert not out
  assert err.count("\n") == 1
  assert "checkpoint of step 7: parameters are not finite (embedding)" in err


def test_a_run_does_not_begin_from_parameters_that_are_not_finite(resolved, not_finite, tmp_path):
  config, corpus = resolved
  config.train.init_from = str(not_finite)
  run = run_of(config, tmp_path / "run")
  with pytest.raises(UserError, match=r"config.train.init_from: .* checkpoint of step 7: parameters are not finite"):
    train([run], corpus)
  # Of a run that diverged, its seal tells: nothing is written, or compiled.
  state = jax.device_get(programs.program(config).init(0))
  store = Checkpoints(not_finite / "checkpoints")
  store.save(8, dataclasses.replace(state, diverged_at=np.int32(5)))
  store.close()
  with pytest.raises(UserError, match="the run had diverged when its checkpoint of step 8 was saved"):
    weights.resolve(config)
