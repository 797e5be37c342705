"""All attention kernels and their gradients agree with plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import parallel
from bigmodel.models.layers.attention import attend
from bigmodel.parallel import kernels

B, T, H, G, K = 4, 64, 4, 2, 8
MESH = dict(fsdp=2, tensor=2)


def compare(other, shape=(B, T, H, G, K), atol=3e-6):
  """Compares values and gradients of a randomly weighted sum of the output, up to the order of float32 sums."""
  b, t, h, g, k = shape
  keys = jax.random.split(jax.random.key(0), 4)
  q, weights = (jax.random.normal(key, (b, t, h, k)) for key in keys[:2])
  ks, v = (jax.random.normal(key, (b, t, g, k)) for key in keys[2:])
  one = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(attend(*x) * weights) / t, argnums=(0, 1, 2)))
  two = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(other(*x) * weights) / t, argnums=(0, 1, 2)))
  np.testing.assert_allclose(jax.jit(other)(q, ks, v), attend(q, ks, v), atol=atol)
  (value, grads), (value_, grads_) = one(q, ks, v), two(q, ks, v)
  assert float(value) == pytest.approx(float(value_), abs=atol)
  for a, b_ in zip(grads, grads_, strict=True):
    np.testing.assert_allclose(b_, a, atol=atol)


@pytest.mark.parametrize("block", [8, 512])
def test_blockwise(monkeypatch, block):
  monkeypatch.setattr(kernels, "BLOCK", block)
  compare(kernels.blockwise)


@pytest.mark.parametrize("kind", [kernels.ring, kernels.gathered])
@pytest.mark.parametrize("sizes", [dict(sequence=8), dict(sequence=2, **MESH), dict(sequence=4, data=2)], ids=str)
def test_attention_over_rows_on_several_devices(kind, sizes):
  compare(kind(parallel.make_mesh_of(sizes)))


@pytest.mark.parametrize("sizes", [dict(data=2), dict(data=2, tensor=2), dict(data=2, sequence=2)], ids=str)
def test_splash_interpreted(sizes):
  """The Pallas kernel for TPUs, run by its interpreter."""
  compare(kernels.splash(parallel.make_mesh_of(sizes), interpret=True), (2, 256, 4, 2, 128), atol=2e-5)


def test_ring_moves_only_keys_and_values():
  mesh = parallel.make_mesh_of(dict(sequence=8))
  x = jax.ShapeDtypeStruct((1, 64, 4, 8), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "sequence")))
  compiled = jax.jit(kernels.ring(mesh)).lower(x, x, x).compile().as_text()
  assert compiled is not None
  assert "collective-permute" in compiled
  assert "all-gather" not in compiled


@pytest.mark.parametrize(
  ("platform", "dtype", "context", "head_size", "expected"),
  [
    ("cpu", "float32", 128, 32, "plain"),
    ("cpu", "float32", 4096, 32, "blockwise"),
    ("tpu", "bfloat16", 4096, 128, "splash"),
    ("tpu", "bfloat16", 128, 64, "plain"),
    ("cuda", "bfloat16", 4096, 128, "cudnn"),
    ("cuda", "float32", 4096, 128, "blockwise"),
  ],
)
def test_the_platform_determines_the_kernel(config, platform, dtype, context, head_size, expected):
  config.data.context, config.model.head_size, config.train.compute_dtype = context, head_size, dtype
  assert kernels.best(config, platform) == expected
