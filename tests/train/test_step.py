"""A step is the same on every mesh, in every pack and with any number of microbatches."""

import jax
import numpy as np
import pytest

from bigmodel import optim, parallel
from bigmodel.config import with_overrides
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.train import programs
from bigmodel.train import step as steps
from bigmodel.train.programs import choose, lanes


def run_steps(config, corpus, count=3, **sizes):
  config = config.copy_and_resolve_references()
  for name, value in sizes.items():
    config.parallel[name] = value
  program = programs.program(config)
  rows = pipeline.train_pipeline(config, corpus, 30)
  state = program.place([program.init(0)])
  h = program.put_hyperparameters([optim.hyperparameters(config, 30)])
  metrics = {}
  for step in range(count):
    state, metrics = program.step(state, program.put_rows([rows.batch(step)]), h)
  return program.member(program.fetch(state), 0), {name: float(value) for name, value in metrics.items()}, program


def close(one, other, rtol=2e-4):
  """Compares up to the order of float32 sums, which Adam's division amplifies for tiny gradients."""
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-5)


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_every_mesh_computes_the_same(resolved, sizes):
  config, corpus = resolved
  config.model.vocab = 264  # 257 is prime
  one, m1, _ = run_steps(config, corpus)
  many, m2, program = run_steps(config, corpus, **sizes)
  assert program.mesh.size == np.prod(list(sizes.values()))
  assert m1 == pytest.approx(m2, rel=1e-4)
  close(one.params, many.params)


def test_parameters_and_optimizer_state_are_sharded_alike(resolved):
  config, _ = resolved
  config.parallel.fsdp, config.parallel.tensor = 4, 2
  program = programs.program(config)
  state = program.init(0)
  specs = jax.tree.map(lambda x: x.sharding.spec, state.params)
  moments = jax.tree.map(lambda x: x.sharding.spec, state.opt_state.own.mu)
  assert specs == moments
  up = state.params["blocks"]["feed_forward"]["up"]
  assert up.addressable_shards[0].data.size * 8 == up.size


def test_initial_parameters_do_not_depend_on_the_mesh(resolved):
  config, corpus = resolved
  one, _, _ = run_steps(config, corpus, count=1)
  program = programs.program(config)
  config.parallel.data = 8
  other = programs.program(config)
  assert program.mesh != other.mesh
  assert steps.params_sha256(program.init(3).params) == steps.params_sha256(other.init(3).params)
  assert steps.params_sha256(program.init(3).params) != steps.params_sha256(program.init(4).params)
  assert one is not None


def test_microbatches_equal_the_whole_batch(resolved):
  config, corpus = resolved
  whole, m1, _ = run_steps(config, corpus)
  config.train.accumulate = 4
  parts, m2, _ = run_steps(config, corpus)
  assert m1 == pytest.approx(m2, rel=1e-4)
  close(whole.params, parts.params)


def pack(config, corpus, members, count=3):
  """Trains (seed, lr) members in one program; returns their states."""
  program = programs.program(config, len(members))
  states, rows, hs = [], [], []
  for seed, lr in members:
    member_config = config.copy_and_resolve_references()
    member_config.data.seed, member_config.optim.lr = seed, lr
    states.append(program.init(seed))
    rows.append(pipeline.train_pipeline(member_config, corpus, 30))
    hs.append(optim.hyperparameters(member_config, 30))
  state, h = program.place(states), program.put_hyperparameters(hs)
  for step in range(count):
    state, _ = program.step(state, program.put_rows([r.batch(step) for r in rows]), h)
  return [program.member(program.fetch(state), i) for i in range(len(members))], program


def test_a_member_of_a_pack_equals_the_single_run(resolved):
  config, corpus = resolved
  (first, second), program = pack(config, corpus, [(0, 3e-3), (1, 1e-2)])
  assert program.mesh.shape["member"] == 2
  alone, _, _ = run_steps(config, corpus)
  close(first.params, alone.params)
  assert steps.params_sha256(first.params) != steps.params_sha256(second.params)


def test_the_bits_of_a_member_do_not_depend_on_other_members(resolved):
  config, corpus = resolved
  (first, _), _ = pack(config, corpus, [(0, 3e-3), (1, 1e-2)])
  (_, again), _ = pack(config, corpus, [(5, 1.0), (0, 3e-3)])
  assert steps.params_sha256(first.params) == steps.params_sha256(again.params)


def test_lanes_hold_several_members(resolved):
  config, corpus = resolved
  members = [(seed, 3e-3) for seed in range(16)]
  states, program = pack(config, corpus, members, count=1)
  assert program.mesh.shape["member"] == 8
  (first, _), _ = pack(config, corpus, members[:2], count=1)
  close(states[0].params, first.params)


def test_packs_of_all_sizes_and_horizons_share_one_step(resolved, monkeypatch):
  config, corpus = resolved
  config.model.width = 24  # of no other test
  single, step, calls = choose.Single, lanes.train_step, []
  monkeypatch.setattr(choose, "Single", lambda *given: (calls.append("single"), single(*given))[1])
  monkeypatch.setattr(lanes, "train_step", lambda *given: (calls.append("step"), step(*given))[1])
  cores = jax.device_count()
  for count in (2 * cores - 3, 3 * cores):
    program = programs.program(config, count)
    state = program.place([program.init(seed) for seed in range(count)])
    horizons = [1 + i % 2 for i in range(count)]
    h = program.put_hyperparameters([optim.hyperparameters(config, horizon) for horizon in horizons])
    rows = pipeline.train_pipeline(config, corpus, 30)
    state, metrics = program.step(state, program.put_rows(*[[rows.batch(k)] * count for k in range(2)]), h)
    host, values = program.fetch(state), program.fetch_metrics(metrics)
    assert [int(program.member(host, i).step) for i in range(count)] == horizons
    assert (host.step[count:] == np.iinfo(np.int32).max).all()  # who fills up the lanes trains nothing
    assert values["loss"].shape == (count, program.stride)
    assert [int(np.count_nonzero(losses)) for losses in values["loss"]] == horizons
  assert calls == ["single", "step"]


def test_program_keys_differ_exactly_if_compiled_fields_differ(resolved):
  config, _ = resolved

  def of(members=1, **changes):
    return programs.key(with_overrides(config, changes), members)

  alike = [
    programs.key(with_overrides(config, {name: value}))
    for name, value in (("optim.lr", 0.5), ("seed", 9), ("train.steps", 9), ("eval.tokens", 9))
  ]
  assert {*alike} == {of()}
  compiled = [
    ("optim.name", "muon"), ("optim.schedule", "wsd"), ("train.batch_size", 16), ("train.accumulate", 2),
    ("train.compute_dtype", "bfloat16"), ("data.context", 16), ("model.width", 64),
  ]  # fmt: skip
  others = [of(**{name: value}) for name, value in compiled] + [of(members) for members in (9, 16, 17)]
  assert len({of(), *others}) == 1 + len(others)


def test_hyperparameters_do_not_compile_again(resolved):
  config, corpus = resolved
  _, _, program = run_steps(config, corpus)
  with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
    compiled = []
    patch.setattr("jax._src.compiler.backend_compile_and_load", lambda *a, **k: compiled.append(a))
    for lr, seed in ((1e-4, 1), (0.5, 2)):
      config.optim.lr, config.data.seed, config.optim.weight_decay, config.task.z_loss = lr, seed, lr, lr
      _, _, again = run_steps(config, corpus)
      assert again is program
  assert not compiled


def test_diverged_steps_are_remembered(resolved):
  config, corpus = resolved
  config.optim.lr, config.optim.clip, config.optim.warmup = 1e30, 1e30, 0.0
  state, metrics, _ = run_steps(config, corpus, count=6)
  assert not np.isfinite(metrics["loss"])
  assert 0 < int(state.diverged_at) < 6


def test_batches_that_do_not_fit_the_mesh_are_refused(resolved):
  config, _ = resolved
  config.parallel.data, config.train.batch_size = 8, 12
  with pytest.raises(UserError, match="not divisible by the mesh"):
    parallel.check(config)
  config.parallel.data = -1  # the largest axis that divides the batch
  parallel.check(config)
  assert parallel.mesh_sizes(config, 8)["data"] == 4
