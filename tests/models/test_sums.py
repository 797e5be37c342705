"""Gradients that are sums over many rows are summed in float32, for any dtype of the summands."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from test_families import CASES, T, init, make  # its folder is on the path of pytest

from bigmodel import models, optim, parallel, tasks
from bigmodel.models.layers.embedding import lookup
from bigmodel.train import step
from bigmodel.train.programs.single import Single

TOKENS = 65_536
FEW = 16  # numbers whose sum bfloat16 holds: each rounding is at most 1 in 256, and they fall either way
OFTEN = 500  # times that a row is read, from which on the roundings of its single gradients have averaged out
VARIANTS = {"bert_pooler", "alexnet_torchvision", "resnet_bottleneck"}  # of cases that are walked
WALKED = [name for name in CASES if name not in VARIANTS]
QUICK = {"gpt", "bert", "linear", "dbn"}
CHANGES = {"tabular": dict(categories=(3, 4)), "gpt": dict(heads=4, kv_heads=2), "bert": dict(vocab=61, types=3)}
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")


def batch_of(config):
  """Returns a batch of about TOKENS tokens, pixels or rows of a table; token frequencies are uneven, like words."""
  rng, model = np.random.default_rng(0), config.model
  if config.data.kind == "text":
    chance = 1 / np.arange(1, 24)
    return rng.choice(23, (TOKENS // T, config.data.context + 1), p=chance / chance.sum()).astype(np.int32)
  rows = TOKENS // (math.prod(model.inputs[:2]) if len(model.inputs) == 3 else 1)
  inputs = rng.random((rows, *model.inputs), np.float32)
  for column, count in enumerate(model.get("categories", ()), model.inputs[0] - len(model.get("categories", ()))):
    inputs[:, column] = rng.integers(0, count, rows)
  sums = inputs.reshape(rows, -1).sum(axis=1)  # classes have to do with inputs: sums of mere noise cancel
  targets = np.searchsorted(np.quantile(sums, np.arange(1, model.outputs) / model.outputs), sums)
  return {"inputs": inputs, "targets": targets.astype(np.int32)}


def evaluated(jaxpr, consts, arguments, sums):
  """The outputs of a jaxpr; `sums` gets (indices, what is added, result) of each scatter-add.

  Fails where many numbers are added up in bfloat16 along an axis.
  """
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
  of = lambda x: x.val if isinstance(x, Literal) else known[x]
  for eqn in jaxpr.eqns:
    name, own = eqn.primitive.name, [of(x) for x in eqn.invars]
    if name in CALLS:
      inner = next(p for p in eqn.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns"))
      out = evaluated(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), own, sums)
    else:
      out = eqn.primitive.bind(*own, **eqn.params)
      out = out if eqn.primitive.multiple_results else [out]
    if name in ("reduce_sum", "cumsum") and own[0].dtype == jnp.bfloat16:
      many = own[0].size // out[0].size if name == "reduce_sum" else own[0].shape[eqn.params["axis"]]
      assert many <= FEW, f"{many} numbers are summed in bfloat16: {eqn}"
    if name == "scatter-add":
      sums.append((own[1], own[2], out[0]))
    known.update(zip(eqn.outvars, out, strict=True))
  return [of(x) for x in jaxpr.outvars]


def loss_of(config, dtype):
  task, model = tasks.build(config), models.build(config, dtype)
  h = {name: jnp.float32(0) for name in tasks.traced(config)}
  return lambda params, batch: task.objective(step.applied(model.apply, params), batch, h, jax.random.key(0))[0]


def by_row(error, size):
  return np.linalg.norm(error, axis=-1) / np.maximum(np.linalg.norm(size, axis=-1), 1e-30)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in WALKED])
def test_gradients_over_many_rows_are_summed_in_float32(name):
  config = make(name, **CHANGES.get(name, {}))
  if "masked_percent" in config.task:
    config.task.masked_percent = 50  # 15% of so short a row are no token
  params, batch = init(config), batch_of(config)
  jaxpr = jax.make_jaxpr(jax.grad(loss_of(config, jnp.bfloat16)))(params, batch)

  def run(*arguments):
    sums = []
    return evaluated(jaxpr.jaxpr, jaxpr.consts, arguments, sums), sums

  leaves = jax.tree.leaves((params, batch))
  # Rounded where the program says so, as on an accelerator.
  grads, sums = jax.jit(run).lower(*leaves).compile(compiler_options={"xla_allow_excess_precision": False})(*leaves)
  counts = {}
  for index, added, result in jax.tree.map(lambda x: np.asarray(x, np.float64), sums):
    if result.ndim == 2 and added.shape[-1] == result.shape[-1]:  # rows of a table, and no batch of tables
      expected, index = np.zeros(result.shape), index.reshape(-1).astype(int)
      np.add.at(expected, index, added.reshape(-1, result.shape[-1]))
      # The program's own cotangents, in another order and at float32's precision.
      assert by_row(result - expected, expected).max() < 0.01
      counts[result.shape] = np.bincount(index, minlength=len(result))
  plain = jax.tree.leaves(jax.jit(jax.grad(loss_of(config, jnp.float32)))(params, batch))
  often = 0
  for mine, exact in zip(grads, plain, strict=True):
    rows = counts[exact.shape] > OFTEN if exact.shape in counts else np.array([], int)
    mine, exact = np.asarray(mine)[rows], np.asarray(exact)[rows]
    often += len(mine)
    assert not len(mine) or np.linalg.norm(exact, axis=-1).all()  # there is something to compare
    assert by_row(mine - exact, exact).max(initial=0) < 0.03
  tables = config.data.kind == "text" or config.model.get("categories")
  assert bool(often) == bool(tables)


def test_every_family_has_a_case():
  assert {CASES[name][0] for name in WALKED} == set(models.FAMILIES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_of_ones_are_exact(dtype):
  index = jnp.zeros((4, 8192), jnp.int32)
  table = jnp.ones((3, 2))
  found = jax.grad(lambda table: jnp.sum(lookup(table, index, ("vocab", "embed"), dtype).astype(jnp.float32)))(table)
  np.testing.assert_array_equal(found, [[4 * 8192.0] * 2, [0.0] * 2, [0.0] * 2])


def test_tables_are_gathered_in_bfloat16_and_their_gradients_scattered_in_float32():
  """With fsdp on eight devices, tables are gathered in the narrower dtype, and their summed gradients are sharded."""
  config = make("gpt", vocab=4096, tie_embeddings=False)
  config.train.update(compute_dtype="bfloat16", batch_size=8)
  config.parallel.preset = "fsdp"
  run = Single(config, parallel.make_mesh_of(dict(fsdp=8)))
  inputs = (tasks.batch_shape(config, 8), optim.hyperparameters(config, 10))
  # A CPU multiplies in float32 and would widen operands before they travel: the text before that is read.
  text = run.lower(*inputs).as_text()
  constrained = [line for line in text.splitlines() if "sharding_constraint" in line and "tensor<4096x16x" in line]
  assert constrained
  gathered = [line for line in constrained if '"fsdp"' not in line]
  assert gathered
  assert all("xbf16>" in line for line in gathered)
  spread = [line for line in constrained if '"fsdp"' in line]
  assert any("xf32>" in line for line in spread)
