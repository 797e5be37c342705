"""The compiler for TPUs on a machine without TPUs: what the planner reads from its programs, and kernels for TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import parallel, study
from bigmodel.parallel import kernels, topology
from bigmodel.planner import analytic, hlo
from bigmodel.planner.compiled import compile_step
from bigmodel.planner.plan import plan_run

pytestmark = pytest.mark.tpu_compiler


@pytest.fixture(scope="module")
def v5e():
  pytest.importorskip("libtpu")
  return topology.parse("v5e:4x4")


def model(experts, **layout):
  config = study.default_config()
  config.model.update(vocab=8192, width=1024, layers=8, heads=8, kv_heads=4, head_size=128, feed_forward=2816)
  config.model.update(tie_embeddings=False, experts=8 if experts else 0, expert_group=256)
  config.data.context = 1024
  config.train.update(batch_size=64, steps=100, compute_dtype="bfloat16")
  config.eval.batch_size = 64
  config.parallel.update(scan=True, remat="full")
  config.parallel.update(layout)
  return config


@pytest.mark.parametrize("shape", [(), (2, 2), (4, 4), (8, 8)])
def test_slices_have_the_devices_of_their_shape(v5e, shape):
  if shape:
    name = "v5e:" + "x".join(map(str, shape))
    assert topology.parse(name).count == len(topology.parse(name).devices) == np.prod(shape)


def test_cycles_of_a_product_agree_with_the_matrix_units(v5e):
  """Within 15% of the bound, by the compiler's own estimate."""
  one = jax.sharding.SingleDeviceSharding(v5e.devices[0])
  x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=one)
  text = jax.jit(lambda a, b: a @ b).lower(x, x).compile().as_text()
  assert text is not None
  read = hlo.read(text)
  assert read.cycles / v5e.chip.clock == pytest.approx(2 * 4096**3 / v5e.chip.flops, rel=0.15)


@pytest.mark.parametrize(("preset", "experts"), [("fsdp", False), ("ep", True)])
def test_bytes_of_a_compiled_step_agree_with_arithmetic(v5e, preset, experts):
  config = model(experts, preset=preset)
  compiled_step = compile_step(config, v5e)
  guess = analytic.estimate(config, parallel.mesh_sizes(config, 16), v5e.chip)
  assert guess.argument_bytes == pytest.approx(compiled_step.argument_bytes, rel=1e-3)
  assert guess.peak_bytes == pytest.approx(compiled_step.peak_bytes, rel=0.15)
  kinds = {row.kind for row in compiled_step.collectives}
  assert "all-gather" in kinds
  assert not experts or "all-to-all" in kinds
  # No collective sums whole gradients: those are scattered.
  reduced = sum(row.bytes for row in compiled_step.collectives if row.kind == "all-reduce")
  assert reduced < 0.1 * sum(row.bytes for row in compiled_step.collectives)


def test_a_step_that_is_too_large_is_refused_with_a_reason(v5e):
  config = model(False, preset="fsdp", remat="none")
  config.train.batch_size = config.eval.batch_size = 16 * 512
  plan = plan_run(config, v5e, {"v5e": 1.0})
  assert plan.costs.fits is False
  assert plan.costs.peak_bytes > 16 * 2**30


def test_splash_attention_compiles_with_its_gradients(v5e):
  mesh = parallel.make_mesh_of(dict(data=4, tensor=2, sequence=2), v5e.devices)
  spec = jax.P("data", "sequence", "tensor")
  shape = lambda heads: jax.ShapeDtypeStruct(
    (8, 2048, heads, 128), jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
  )
  loss = lambda q, k, v: jnp.sum(kernels.splash(mesh)(q, k, v).astype(jnp.float32))
  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape(8), shape(4), shape(4)).compile().as_text()
  assert text is not None
  assert "splash" in text


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=32), dict(data=8, fsdp=8), dict(fsdp=2, tensor=8, pipeline=4)])
def test_axes_of_a_mesh_need_not_be_whole_axes_of_the_torus(sizes):
  pytest.importorskip("libtpu")
  devices = topology.parse("v5p:4x4x4").devices
  mesh = parallel.make_mesh_of(sizes, devices)
  assert set(mesh.devices.flat) == set(devices)
  assert all(mesh.shape[axis] == size for axis, size in sizes.items())
