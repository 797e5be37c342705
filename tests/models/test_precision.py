"""Inputs of a softmax or loss are summed and kept in float32; float32 models multiply in float32 everywhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from test_families import CASES, abstract, init, inputs_of, make  # its folder is on the path of pytest

from bigmodel import models, optim, parallel, tasks
from bigmodel.models import decoder
from bigmodel.models.layers.attention import attend
from bigmodel.parallel import kernels
from bigmodel.tasks import generation
from bigmodel.train import step
from bigmodel.train.programs.single import Single

PRODUCTS = ("dot_general", "conv_general_dilated")
SOFTMAX = ("exp", "exp2", "log", "log1p", "argmax", "top_k", "sort", "reduce_max")


def rounded(jaxpr, inputs, found):
  """Which outputs of a jaxpr are results of products that were rounded to bfloat16 and not multiplied again.

  `inputs` says it of the jaxpr's inputs. The names of the operations of a softmax that meet one are added to `found`.
  """
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  of = lambda x: False if isinstance(x, Literal) else known.get(x, False)
  for eqn in jaxpr.eqns:
    own, name = [of(x) for x in eqn.invars], eqn.primitive.name
    inner = [p for p in jax.tree.leaves(list(eqn.params.values())) if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    inner = [getattr(p, "jaxpr", p) for p in inner]
    if name in PRODUCTS:
      out = [eqn.outvars[0].aval.dtype == jnp.bfloat16]
    elif name == "scan":
      consts, carried, out = eqn.params["num_consts"], eqn.params["num_carry"], []
      for _ in range(carried + 1):
        out = rounded(inner[0], own, found)
        own[consts : consts + carried] = [a or b for a, b in zip(own[consts:], out[:carried], strict=False)]
    elif name in ("while", "cond"):
      out = [any(own)] * len(eqn.outvars)
      for body in inner:
        rounded(body, [any(own)] * len(body.invars), found)
    elif inner:
      out = rounded(inner[0], own, found)
    else:
      out = [any(own)] * len(eqn.outvars)
      if name in SOFTMAX and any(own):
        found.append(name)
    known.update(zip(eqn.outvars, out, strict=True))
  return [of(x) for x in jaxpr.outvars]


def check(function, *shapes):
  """Fails if a softmax in `function`, or a float32 array that it returns, depends directly on rounded products."""
  jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
  found = []
  ends = rounded(jaxpr, [False] * len(jaxpr.invars), found)
  assert not found
  assert not any(end for end, x in zip(ends, jaxpr.outvars, strict=True) if x.aval.dtype == jnp.float32)


def task_of(config, name):
  """Returns the config for another task of its family."""
  own = config.copy_and_resolve_references()
  if own.task.name != name:
    own.task = {**tasks.defaults(name)}
    own.model.outputs = 1 if name == "regression" else own.model.outputs
  return own


def test_every_family_has_a_case():
  assert {family for family, _ in CASES.values()} == set(models.FAMILIES)


@pytest.mark.parametrize("name", [name for name, (_, fields) in CASES.items() if "head" not in fields])
def test_no_softmax_or_loss_sees_products_that_were_rounded_to_bfloat16(name):
  config = make(name)
  for task_name in models.family(config.model.family).TASKS:
    own = task_of(config, task_name)
    _, params = abstract(own)
    task, batch, key = tasks.build(own), tasks.batch_shape(own, 2), jax.eval_shape(lambda: jax.random.key(0))
    numbers = dict.fromkeys(tasks.traced(own), 0.1)
    apply = functools.partial(step.applied, models.build(own, jnp.bfloat16).apply)
    check(functools.partial(objective, task, apply, numbers), params, batch, key)
    check(functools.partial(values, task, apply), params, batch, key)


def objective(task, apply, numbers, params, batch, key):
  return task.objective(apply(params), batch, numbers, key)


def values(task, apply, params, batch, key):
  return task.values(apply(params), batch, key)


@pytest.mark.parametrize("name", ["gpt", "gopher"])
def test_decoding_sees_no_rounded_products_either(name):
  config = make(name)
  model, (_, params) = decoder.build(config, jnp.bfloat16), abstract(config)
  caches = jax.eval_shape(lambda: generation.empty_caches(model, 2, 6))
  tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
  check(lambda p, x, c: model.apply({"params": generation.by_layer(p)}, x, c, jnp.int32(3))[0], params, tokens, caches)


@pytest.mark.parametrize("kernel", ["plain", "blockwise", "ring", "gather"])
def test_no_kernel_of_attention_rounds_its_scores(kernel):
  """Their backward passes do not round the inputs of the gradient of a softmax, either."""
  x = jax.ShapeDtypeStruct((2, 16, 2, 8), jnp.bfloat16)
  mesh = parallel.make_mesh_of(dict(sequence=2), jax.devices()[:2])
  attends = {"plain": attend, "blockwise": kernels.blockwise, "ring": kernels.ring, "gather": kernels.gathered}
  own = attends[kernel](mesh) if kernel in ("ring", "gather") else attends[kernel]
  found = []
  jaxpr = jax.make_jaxpr(jax.grad(lambda *x: jnp.sum(own(*x).astype(jnp.float32)), argnums=(0, 1, 2)))(x, x, x).jaxpr
  rounded(jaxpr, [False] * 3, found)
  assert not found


def program_text(config, dtype):
  """Returns the lowered training step of a config as text."""
  own = config.copy_and_resolve_references()
  own.train.compute_dtype, own.train.batch_size = dtype, 2
  run = Single(own, parallel.make_mesh_of({}, jax.devices()[:1]))
  return run.lower(tasks.batch_shape(own, 2), optim.hyperparameters(own, 10)).as_text()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_float32_models_are_multiplied_in_float32_everywhere(family):
  """An accelerator would otherwise round operands to bfloat16 or TF32."""
  config = make(next(name for name, (own, _) in CASES.items() if own == family))
  products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program_text(config, "float32"))
  assert products
  assert all("HIGHEST" in text for text in products)


def test_bfloat16_models_use_the_default_precision():
  text = program_text(make("gpt"), "bfloat16")
  assert "dot_general" in text
  assert "HIGHEST" not in text


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "vit", "mlp"])
def test_outputs_are_not_rounded_even_if_the_compiler_rounds_strictly(name):
  """By default a CPU keeps excess precision; accelerators do not."""
  config = make(name)
  params, inputs = init(config), inputs_of(config)
  model = models.build(config, jnp.bfloat16)
  lowered = jax.jit(lambda *x: model.apply({"params": params}, *x)[0]).lower(*inputs)
  outputs = lowered.compile(compiler_options={"xla_allow_excess_precision": False})(*inputs)
  assert outputs.dtype == jnp.float32
  rounded_already = outputs == outputs.astype(jnp.bfloat16).astype(jnp.float32)
  assert np.mean(rounded_already) < 0.1  # of float32 numbers 1 in 65,536 has no digits beyond bfloat16's
