"""The gradient noise scale equals a direct measurement; statistics of layers equal those of the actual step."""

import jax
import numpy as np
import pytest

from bigmodel import models, optim, study, tasks, train
from bigmodel.data import pipeline
from bigmodel.errors import UserError
from bigmodel.models.layers.roles import dotted
from bigmodel.train import metrics, programs
from bigmodel.train.checkpoint import to_flat
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.run import Run
from bigmodel.train.stop import StopRequest


def test_noise_scale_of_microbatches_equals_that_of_single_rows(resolved):
  """Compares the estimate from norms of microbatches with that from the gradient of every row, at fixed parameters.

  The model has learned some steps, so that the noise of a row is larger than the mean gradient.
  """
  config, corpus = resolved
  config.train.update(accumulate=4, batch_size=16, noise_scale=True)
  config.optim.update(lr=1e-2, weight_decay=0.0)
  config.data.repeat = True
  count = 370  # two rounds of all rows
  program, rows = programs.program(config), pipeline.train_pipeline(config, corpus, count)
  state = program.place([program.init(0)])
  h = program.put_hyperparameters([optim.hyperparameters(config, 60)])
  for step in range(60):
    state, _ = program.step(state, program.put_rows([rows.batch(step)]), h)
  params = jax.tree.map(np.array, state.params)
  config.optim.lr = 1e-12
  h = program.put_hyperparameters([optim.hyperparameters(config, count)])
  seen, logged = [], {}
  for step in range(count):
    batch = rows.batch(step)
    seen.append(np.asarray(batch))
    state, logged = program.step(state, program.put_rows([batch]), h)

  model, task = models.build(config), tasks.build(config)
  apply = lambda params: lambda *inputs: model.apply({"params": params}, *inputs)
  loss = lambda params, row: task.objective(apply(params), row[None], h.task, jax.random.key(0))[0]
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

  @jax.jit
  def of_rows(rows):
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, rows)
    return jax.tree.map(lambda x: x.sum(0), grads), sum((x**2).sum() for x in jax.tree.leaves(grads))

  sums, squares = zip(*map(of_rows, seen), strict=True)
  n = count * 16
  mean = np.asarray(sum(map(flat, sums))) / n
  variance = (sum(map(float, squares)) / n - mean @ mean) * n / (n - 1)
  assert variance / (mean @ mean) > 4  # rows: a quarter of a batch
  assert float(logged["noise_scale"]) == pytest.approx(variance / (mean @ mean - variance / n), rel=0.15)


def test_noise_scale_needs_microbatches_and_is_recorded_in_tokens(config, tmp_path):
  config.train.noise_scale = True
  with pytest.raises(UserError, match="set accumulate to 2 or more"):
    train.check(config)
  config.train.accumulate = 4
  run, data = study.single_run(config, tmp_path)
  with Display(0, True) as display:
    (record,) = train_runs([run], data, display, StopRequest())
  last = metrics.read(tmp_path)[-1]
  assert record.metrics["noise_scale"] == pytest.approx(last["noise_scale"])
  assert last["noise_scale"] > 0
  _, step_metrics, _ = _one_step(run.config, data, 30)
  assert last["noise_scale"] == pytest.approx(float(step_metrics["noise_scale"]) * config.data.context)


def _one_step(config, data, count=1):
  """Makes some steps; returns the state, and the last step's metrics and (parameters before it, statistics)."""
  program, rows = programs.program(config), pipeline.train_pipeline(config, data, 30)
  state = program.place([program.init(0)])
  h = program.put_hyperparameters([optim.hyperparameters(config, 30)])
  for step in range(count - 1):
    state, _ = program.step(state, program.put_rows([rows.batch(step)]), h)
  batch = program.put_rows([rows.batch(count - 1)])
  before = jax.tree.map(np.array, state.params)
  (layers,) = program.layer_statistics(state, batch, h)
  state, logged = program.step(state, batch, h)
  return state, logged, (before, layers)


def test_statistics_equal_those_of_the_actual_step(resolved):
  config, data = resolved
  config.model.layers = 2
  state, step_metrics, (before, found) = _one_step(config, data, 3)
  assert set(found) == {"activation", "parameter", "gradient", "update"}
  assert len(found["activation"]["block"]) == len(found["parameter"]["blocks.attention.query"]) == 2
  assert len(found["activation"]["decoder"]) == 1
  root = lambda x: float(np.sqrt(np.mean(np.square(x))))
  rows = models.real_rows(config)  # padding of tables does not count
  for path, x in jax.tree_util.tree_leaves_with_path(before):
    name = dotted(path)
    after = state.params
    for key in path:
      after = after[key.key]
    layers = list(zip(np.asarray(after), x, strict=True)) if "blocks." in name else [(np.asarray(after), x)]
    layers = [(new[: rows.get(name, len(new))], old[: rows.get(name, len(old))]) for new, old in layers]
    for i, (new, old) in enumerate(layers):
      assert float(found["parameter"][name][i]) == pytest.approx(root(old), rel=1e-5)
      assert float(found["update"][name][i]) == pytest.approx(root(new - old), rel=1e-2)
  sizes = {name: x[: rows.get(name, len(x))].size for name, x in to_flat(before).items()}
  norm = sum(sizes[n] / len(x) * sum(float(v) ** 2 for v in x) for n, x in found["gradient"].items()) ** 0.5
  assert norm == pytest.approx(float(step_metrics["grad_norm"]), rel=1e-4)
  model = models.build(config)
  rows = pipeline.train_pipeline(config, data, 30).batch(2)
  logits, _ = model.apply({"params": before}, np.asarray(rows)[:, :-1])
  assert float(found["activation"]["decoder"][0]) == pytest.approx(root(logits), rel=1e-5)


KINDS = [("decoder", 1), ("bert", 2)]
MORE_KINDS = [("bert", 1), ("decoder", 4), ("transformer", 1), ("transformer", 2), ("mlp", 1), ("mlp", 2)]


@pytest.mark.parametrize(
  ("family", "accumulate"), KINDS + [pytest.param(*kind, marks=pytest.mark.slow) for kind in MORE_KINDS]
)
def test_statistics_use_the_random_keys_of_the_actual_step(config, tmp_path, family, accumulate):
  """The keys of dropout and of masked tokens. With SGD at rate 1, the change of the parameters is the gradient."""
  changed_config = study.default_config(family)
  if changed_config.data.kind == "text":
    changed_config.data = config.data
    changed_config.model.update(width=16, layers=1, head_size=8)
  else:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", inputs=rng.standard_normal((64, 6)), targets=np.arange(64) % 4)
    changed_config.data.update(name="arrays", path=str(tmp_path / "rows.npz"))
  if "dropout" in changed_config.model:
    changed_config.model.dropout = 0.5
  changed_config.optim.update(name="sgd", lr=1.0, warmup=0.0, schedule="constant", weight_decay=0.0, clip=1e9)
  changed_config.train.update(steps=30, batch_size=8, accumulate=accumulate)
  changed_config.parallel.data = 1
  data = pipeline.prepare(changed_config)
  changed_config = study.resolve(changed_config, data)
  state, _, (before, found) = _one_step(changed_config, data)
  moved = jax.tree.map(lambda new, old: old - np.asarray(new), state.params, before)
  largest = max(float(x) for layers in found["gradient"].values() for x in layers)
  rows = models.real_rows(changed_config)
  for name, x in to_flat(moved).items():
    layers = list(x) if "blocks." in name else [x[: rows.get(name, len(x))]]
    for layer, gradient, update in zip(layers, found["gradient"][name], found["update"][name], strict=True):
      size = float(np.sqrt(np.mean(layer**2)))
      # Differences of parameters near 1 are rounded to 1e-7 of these.
      assert float(gradient) == pytest.approx(size, rel=1e-3, abs=1e-5 * largest), name
      assert float(update) == pytest.approx(size, rel=1e-3, abs=1e-5 * largest), name


def test_members_of_a_pack_have_separate_statistics_and_unchanged_results(resolved, tmp_path):
  config, data = resolved
  runs = []
  for seed in (0, 1):
    changed_config = config.copy_and_resolve_references()
    changed_config.seed = seed
    changed_config.train.update(steps=10, layers_every=5)
    runs.append(Run(changed_config, tmp_path / str(seed)))
  with Display(0, True) as display:
    packed = train_runs(runs, data, display, StopRequest())
  changed_config.train.layers_every = 0
  with Display(0, True) as display:
    (plain,) = train_runs([Run(changed_config, tmp_path / "plain")], data, display, StopRequest())
  assert plain.run_id == packed[1].run_id
  layers = [{row["step"]: row["layers"] for row in metrics.read(run.folder) if "layers" in row} for run in runs]
  assert [set(one) for one in layers] == [{5, 10}] * 2
  assert layers[0][5] != layers[1][5]
  config.train.layers_every = 7
  with pytest.raises(UserError, match="not a multiple of log_every"):
    train.check(config)
