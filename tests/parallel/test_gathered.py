"""Weights that are stored in pieces: how much of them is in memory at once."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bigmodel import models, parallel, study
from bigmodel.models.layers.basic import gathering_again, times, with_gathered
from bigmodel.parallel import blocks, topology
from bigmodel.planner.compiled import compile_step

WITH_A_STACK = [name for name in models.FAMILIES if "run_blocks" in models.family(name).SUPPLIED]
CASES = [*((name, False) for name in WITH_A_STACK), ("decoder", True)]
SIZES = {
  "decoder": dict(vocab=64),
  "bert": dict(vocab=64, positions=8),
  "transformer": dict(vocab=64),
  "vit": dict(inputs=(8, 8, 1), outputs=4),
  "tabular": dict(inputs=(8,), outputs=4),
}


def in_pieces(family, experts, layers):
  """A wide model on few tokens, so that its temporaries are weights and their gradients."""
  config = study.default_config(family)
  config.model.update(width=256, layers=layers, head_size=64, **SIZES[family])
  if "context" in config.data:
    config.data.context = 8
  if experts:
    config.model.experts = 2
  config.train.update(batch_size=8, steps=10)
  config.eval.batch_size = 8
  config.parallel.preset = "fsdp"  # and all else as it is unless asked otherwise
  return study.resolve_without_data(config)


QUICK = {("decoder", False, "none", False), ("decoder", False, "full", False)}
SETTINGS = [
  pytest.param(family, experts, remat, scan, marks=() if (family, experts, remat, scan) in QUICK else pytest.mark.slow)
  for family, experts in CASES
  for remat in parallel.REMAT
  for scan in (False, True)
  # Weights in pieces always run as one loop, so `scan` makes a difference nowhere: one family shows it.
  if not scan or (family, experts) == ("decoder", False)
]


@pytest.mark.parametrize(("family", "experts", "remat", "scan"), SETTINGS)
def test_whole_weights_of_all_layers_are_never_in_memory_together(family, experts, remat, scan):
  """Another layer adds pieces of its weights and gradients to the temporaries, but not the weights."""
  few, many = (in_pieces(family, experts, layers) for layers in (2, 8))
  for config in (few, many):
    config.parallel.update(remat=remat, scan=scan)
  bytes_ = [compile_step(config, topology.parse("")).temporary_bytes or 0 for config in (few, many)]
  assert all(bytes_)
  params = [4 * models.counts_of(config).params_total for config in (few, many)]
  # On 8 devices: an eighth each for the gradients and for the new parameters; and the layer's activations. Kept whole
  # from the forward pass on, weights would make it more than 1.
  assert (bytes_[1] - bytes_[0]) / (params[1] - params[0]) < 0.5


def test_gathering_again_changes_neither_products_nor_gradients():
  """Bit for bit, on one device and where the weight is spread."""
  rng = np.random.default_rng(0)
  x, weight = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, 16), (16, 8)))
  mesh = parallel.make_mesh_of(dict(fsdp=8))
  active = parallel.rules_on(mesh, parallel.RULES)

  def both(x, weight, again):
    product = functools.partial(with_gathered, times, axes=("embed", "mlp"))
    loss = lambda x, weight: jnp.sum(jnp.sin(product(x.astype(jnp.bfloat16), weight).astype(jnp.float32)))
    how = gathering_again() if again else contextlib.nullcontext()
    with how, jax.set_mesh(mesh), nn.logical_axis_rules(active):
      return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, weight)

  for one, other in zip(jax.tree.leaves(both(x, weight, False)), jax.tree.leaves(both(x, weight, True)), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("devices", [1, 8])
def test_one_device_computes_as_without_any_gathering(devices):
  """Nothing is wrapped where no weight is in pieces, so that its program and its speed are what they were."""
  config = in_pieces("decoder", False, 2)
  mesh = parallel.make_mesh(config, devices=jax.devices()[:devices])
  assert blocks.stored_in_pieces(config, mesh.shape) == (devices > 1)
  config.parallel.rules = ("embed=",)
  assert not blocks.stored_in_pieces(config, mesh.shape)
  config.parallel.update(preset="dp", rules=())
  assert not blocks.stored_in_pieces(config, parallel.make_mesh(config).shape)
