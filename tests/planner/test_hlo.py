"""Reading compiled programs: collectives in every notation, counted as often as their loops run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import parallel
from bigmodel.planner import hlo

MODULE = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %n = u32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%async_collective_fusion.1 (x: bf16[4,16]) -> bf16[32,16] {
  %x = bf16[4,16] parameter(0)
  ROOT %all-gather.1 = bf16[32,16]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.2 (x: bf16[4,16]) -> bf16[32,16] {
  %x = bf16[4,16] parameter(0)
  ROOT %all-gather.2 = bf16[32,16]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.3 (x: bf16[4,4]) -> bf16[32,4] {
  %x = bf16[4,4] parameter(0)
  ROOT %all-gather.3 = bf16[32,4]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.4 (x: bf16[4,4]) -> bf16[32,4] {
  %x = bf16[4,4] parameter(0)
  ROOT %all-gather.4 = bf16[32,4]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %f1 = bf16[32,16] fusion(%p), kind=kCustom, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"10"}
  %f2 = bf16[32,16] fusion(%f1), kind=kCustom, calls=%async_collective_fusion.2, backend_config={"estimated_cycles":"5"}
  %f4 = bf16[32,4] fusion(%p), kind=kCustom, calls=%async_collective_fusion.4
  %c = s32[2,2]{1,0:T(8,128)} constant({
    { 1, 2 },
    { 3, 4 }
}}, metadata={op_name="a constant of several lines"}
  %all-reduce.1 = f32[8]{0} all-reduce(%f2), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%p, %all-reduce.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %f3 = bf16[32,4] fusion(%x), kind=kCustom, calls=%async_collective_fusion.3
  %w = (s32[], f32[8]) while(%x), condition=%cond, body=%body
  %cp = (f32[6], f32[6], u32[], u32[]) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,2},{2,4}}
  %a2a = f32[8]{0} all-to-all(%x), channel_id=7, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %rs = f32[2]{0} reduce-scatter(%x), channel_id=8, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  ROOT %r = f32[8] get-tuple-element(%w), index=1
}
"""


def test_every_notation_of_groups_and_loops_is_read():
  program = hlo.read(MODULE)
  beside = [c for c in program.collectives if c.sent == 32 * 4 * 2 * 7 / 8]
  assert [c.times for c in beside] == [1]  # it begins outside of the loop that it runs beside
  found = {c.kind: c for c in program.collectives if c not in beside}
  assert len(program.collectives) == 6  # two parts of one asynchronous gather are one
  assert program.cycles == 12 * 15
  gather = found["all-gather"]
  assert (gather.times, gather.overlaps, gather.sent) == (12, True, 32 * 16 * 2 * 7 / 8)
  reduce = found["all-reduce"]
  assert (reduce.times, reduce.overlaps, reduce.group, reduce.sent) == (12, False, (0, 1), 32)
  assert (found["collective-permute"].group, found["collective-permute"].sent) == ((0, 2), 24)
  assert found["all-to-all"].group == (0, 4)
  assert (found["reduce-scatter"].group, found["reduce-scatter"].sent) == ((0, 1, 2, 3), 8 * 3)


@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_a_real_program_names_the_devices_of_the_mesh(axis):
  mesh = parallel.make_mesh_of(dict(data=2, tensor=4))
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(axis)))
  total = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=jax.NamedSharding(mesh, jax.P()))
  text = total.lower(x).compile().as_text()
  assert text is not None
  program = hlo.read(text)
  (one,) = [c for c in program.collectives if c.kind == "all-reduce"]
  n = mesh.shape[axis]
  assert one.sent == 2 * 8 * 4 * (n - 1) / n
  places = np.array([d.id for d in mesh.devices.flat]).reshape(2, 4)
  assert set(one.group) in ([set(c) for c in places.T] if axis == "data" else [set(r) for r in places])
