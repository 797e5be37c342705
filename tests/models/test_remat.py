"""The stated FLOPs of a step equal those of its products, for all policies of rematerialization."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_families import CASES, T, convolutions, inputs_of, make  # its folder is on the path of pytest

from bigmodel import models, parallel
from bigmodel.models.layers.block import unrolled
from bigmodel.parallel import blocks

WITH_BLOCKS = [name for name, (family, _) in CASES.items() if "run_blocks" in models.family(family).SUPPLIED]


def products(jaxpr) -> int:
  """Returns the FLOPs of all matrix products in a jaxpr; the body of a loop counts once per iteration."""
  total = 0
  for eqn in jaxpr.eqns:
    turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += turns * products(inner)
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      size = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
      total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(size)
  return total


def uncounted(name, config, units, remat):
  """Returns the FLOPs of products that `Counts` excludes on purpose, times the number of computations."""
  shape: Any = models.shape_of(config)
  again = remat != "none"
  D, HK = getattr(shape, "width", 0), shape.heads * shape.head_size
  # The half of the scores that a causal mask hides: forward, twice backward, and again; a plain kernel computes it.
  causal = units / 2 if name == "transformer" else units if config.model.family == "decoder" else 0
  hidden = (3 + again) * shape.layers * 4 * HK * (T - 1) / 2 * causal
  if name == "gopher":
    hidden += (3 + again) * shape.layers * 2 * HK * (T - 1) / 2 * causal
    # The table of distances is multiplied once for all rows: forward, for its matrix's gradient, and again.
    hidden += (2 + (remat in ("full", "offload"))) * shape.layers * 2 * D * HK * T
    hidden += shape.layers * 2 * D * HK * T  # the rule for gradients asks for that of the table, which is constant
  if config.model.get("experts"):
    # The weighted sum of the chosen experts' results, which only a norm after it needs again.
    times = 3 + (again and not shape.norm_first)
    hidden += times * shape.layers * 2 * shape.experts_per_token * D * units
  if name == "bert_pooler":
    hidden += 3 * 2 * D**2 * 2  # once a row: not counted a token
  return hidden


@pytest.mark.parametrize("remat", parallel.REMAT)
@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_flops_of_hardware_are_the_products_of_a_training_step(name, remat):
  config = make(name)
  inputs = inputs_of(config)
  params = nn.meta.unbox(models.abstract_parameters(config))
  units = sum(np.size(x) for x in inputs) if config.data.kind == "text" else len(inputs[0])
  claim = models.counts_of(config).flops(units, remat)["flops_hardware"] + uncounted(name, config, units, remat)
  for run in (unrolled, blocks.scanned):
    model = models.build(
      config, run_blocks=lambda block, stacked, x, run=run: run(blocks.remat(block, remat), stacked, x)
    )

    def loss(params, model=model):
      outputs, auxiliary = model.apply({"params": params}, *inputs, rngs={"dropout": jax.random.key(0)})
      return jnp.sum(outputs**2) + sum(auxiliary.values())

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    assert products(jaxpr) + convolutions(jaxpr) == pytest.approx(claim, rel=1e-9), run.__name__


def test_every_family_with_blocks_has_a_case():
  families = {name for name in models.FAMILIES if "run_blocks" in models.family(name).SUPPLIED}
  assert {CASES[name][0] for name in WITH_BLOCKS} == families
