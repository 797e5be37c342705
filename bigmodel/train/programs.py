"""Which program trains a config: that of one run, or of a pack of runs side by side."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel import data, hardware, models, optim, parallel, tasks
from bigmodel.config import Config, digest, flatten
from bigmodel.models.layers.basic import exact_products
from bigmodel.parallel import blocks, hosts
from bigmodel.train import alone
from bigmodel.train.alone import Lone, Program
from bigmodel.train.step import State, applied, train_step

STRIDE = 8  # steps that a member of a pack may make before the next one's turn, while its state is in the cache
STRIDE_BYTES = 4 << 20  # of their rows: larger ones would not leave it there
AT_ONCE = 8  # members that each core evaluates before the host looks at what came out
AT_ONCE_BYTES = 64 << 20  # of their parameters

_PROGRAMS: dict[str, Program] = {}
_LANES: dict[str, "Lanes"] = {}
_LONE: dict[str, Lone] = {}


def program(config: Config, members: int = 1) -> Program:
  """The program of a resolved config; the same one for every run that differs in traced inputs only.

  Members of a pack that have come to their ends before the others cost nothing on the lanes of a CPU, which leave them
  as they are; batched they are computed on, and what they become is not to be read.
  """
  own, side_by_side, whole = _keys(config, members)
  if whole not in _PROGRAMS:
    if own not in _LONE:
      _LONE[own] = alone.lone_run(config, parallel.make_mesh(config))
    lone, mesh = _LONE[own], parallel.make_mesh(config, members)
    if members == 1:
      _PROGRAMS[whole] = alone.program_of(lone)
    elif parallel.mapped(config):
      if side_by_side not in _LANES:
        _LANES[side_by_side] = _lanes(config, mesh)
      _PROGRAMS[whole] = _on_lanes(lone, _LANES[side_by_side], members)
    else:
      _PROGRAMS[whole] = _batched(config, lone, mesh, members)
  return _PROGRAMS[whole]


def key(config: Config, members: int = 1) -> str:
  """What tells apart what is compiled, each program for every size of its batches: runs alike in this compile once."""
  return _keys(config, members)[-1] + repr(config.train.batch_size)


def _keys(config: Config, members: int) -> tuple[str, str, str]:
  """Of the program of one run, of what any number of members share, and of a pack of so many."""
  traced = tasks.traced(config)
  kept = {
    name: value
    for name, value in flatten(config).items()
    if name.startswith(("model.", "parallel.", "task.")) and name.removeprefix("task.") not in traced
  }
  parts = (
    optim.How.of(config),
    config.train.accumulate,
    config.train.noise_scale,
    config.train.compute_dtype,
    data.unit(config),
    str(parallel.make_mesh(config)),
  )
  own = digest(kept) + repr(parts)
  side_by_side = own + repr((_stride(config), str(parallel.make_mesh(config, members))))
  return own, side_by_side, side_by_side + repr(members)


def _batched(config: Config, lone: Lone, mesh: Mesh, members: int) -> Program:
  """Runs side by side, batched: state, rows and hyperparameters have a leading axis M."""
  spread, by_member = alone.lone_run(config, mesh, packed=True), parallel.member_sharding(mesh)
  each = lambda sharding: NamedSharding(mesh, PartitionSpec("member", *sharding.spec), memory_kind=sharding.memory_kind)
  placed, rows_sharding = jax.tree.map(lambda x: each(x.sharding), spread.shapes), each(parallel.batch_sharding(mesh))
  jitted = jax.jit(
    jax.vmap(spread.one_step, spmd_axis_name="member"),
    donate_argnums=0,
    in_shardings=(placed, rows_sharding, by_member),
    out_shardings=(placed, by_member),
    compiler_options=hardware.compiler_options(),
  )
  member = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
  return dataclasses.replace(
    alone.program_of(lone),
    mesh=mesh,
    step=spread.on_mesh(jitted),
    place=lambda states: jax.device_put(_stack(states), placed),
    put_rows=lambda rows: jax.device_put(_stack([hosts.all_rows(one) for one in rows]), rows_sharding),
    put_hyperparameters=lambda h: jax.device_put(_stack(h), by_member),
    next_stage=functools.partial(alone.anew, (placed.params, placed.opt_state), several=True),
    told=lambda metrics: jax.tree.map(lambda x: np.reshape(np.asarray(x), (members, 1)), metrics),
    layers=lambda *arguments: [lone.layers(*member(jax.device_get(arguments), i)) for i in range(members)],
    fetch=jax.device_get,
    member=member,
  )


@dataclasses.dataclass(frozen=True)
class Lanes:
  """What the cores of a CPU compute side by side, each with its members in turn: traced once for packs of all sizes.

  State, rows, hyperparameters and parameters have a leading axis of members, those of one lane beside each other.
  """

  mesh: Mesh
  stride: int
  at_once: int  # members of each lane
  step: Callable[..., tuple[State, dict[str, jax.Array]]]  # (steps, state, rows of all these, hyperparameters)
  values: Callable[..., dict[str, jax.Array]]  # (params, rows, key), of one member on each lane


def _lanes(config: Config, mesh: Mesh) -> Lanes:
  config = config.copy_and_resolve_references()  # it is read as late as it is traced
  supplied = {"run_blocks"} & set(models.family(config.model.family).SUPPLIED)
  ways = {name: blocks.choose(config, mesh) for name in supplied}
  dtype = jnp.dtype(config.train.compute_dtype)
  model, task = models.build(config, dtype, **ways), tasks.build(config)
  one_step = functools.partial(train_step, model.apply, task, optim.How.of(config), config.train.accumulate)
  several = _several(jax.jit(one_step, inline=True), _stride(config))
  compiled = functools.partial(jax.jit, compiler_options=hardware.compiler_options())
  by_lane = functools.partial(jax.shard_map, mesh=mesh, out_specs=PartitionSpec("member"), check_vma=False)
  shared, own = PartitionSpec(), PartitionSpec("member")

  @functools.partial(compiled, donate_argnums=1)
  @functools.partial(by_lane, in_specs=(shared, own, own, own))
  def step(count: jax.Array, *of_members: Any) -> Any:
    with exact_products(dtype):
      return jax.lax.map(lambda one: several(count, *one), of_members)

  @compiled
  @functools.partial(by_lane, in_specs=(own, shared, shared))
  def values(params: Any, rows: Any, key: jax.Array) -> Any:
    params = jax.tree.map(lambda x: x[0], params)
    with exact_products(dtype):
      found = task.values(applied(model.apply, params), rows, jax.random.key(key))
    return jax.tree.map(lambda x: x[None], found)

  at_once = min(AT_ONCE, max(1, AT_ONCE_BYTES // (4 * models.counts_of(config).params_total)))
  return Lanes(mesh, _stride(config), at_once, step, values)


def _several(one_step: Callable, most: int) -> Callable:
  """So many steps of one run after another, but none beyond its horizon, and what each told."""

  def steps(count: jax.Array, state: State, rows_K: Any, h: optim.Hyperparameters) -> tuple[State, Any]:
    at = lambda k: jax.tree.map(lambda x: x[k], rows_K)
    told = jax.eval_shape(one_step, state, at(0), h)[1]
    empty = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), told)

    def go_on(k: jax.Array, known: tuple[State, Any]) -> tuple[State, Any]:
      state, now = one_step(known[0], at(k), h)
      return state, jax.tree.map(lambda all_, x: all_.at[k].set(x), known[1], now)

    left = (h.first + h.steps - state.step).astype(jnp.int32)
    return jax.lax.fori_loop(0, jnp.minimum(count, left), go_on, (state, empty))

  return steps


def _on_lanes(lone: Lone, lanes: Lanes, members: int) -> Program:
  """Runs side by side, one after another on each core of a CPU, which is faster there than to batch them."""
  mesh, by_member = lanes.mesh, parallel.member_sharding(lanes.mesh)
  member = lambda tree, index: jax.tree.map(lambda x: x[index], tree)

  def put(given: Sequence[Any], idle: Any = None) -> Any:
    """Members, and what fills up the lanes: copies of the last, or of `idle`."""
    more = -len(given) % mesh.size
    return jax.device_put(_stack([*given, *[given[-1] if idle is None else idle] * more]), by_member)

  def place(states: list[State]) -> State:
    return put(states, dataclasses.replace(states[-1], step=np.int32(np.iinfo(np.int32).max)))  # it has nothing to do

  def put_rows(*given: list[hosts.Rows]) -> tuple[np.int32, Any]:
    own = [[hosts.all_rows(one) for one in rows] for rows in given]
    own += own[-1:] * (lanes.stride - len(own))
    return np.int32(len(given)), put([_stack(steps) for steps in zip(*own, strict=True)])

  def layers(state: State, rows: tuple[np.int32, Any], h: optim.Hyperparameters) -> list[Any]:
    host = jax.device_get((state, jax.tree.map(lambda x: x[:, 0], rows[1]), h))
    return [lone.layers(*member(host, i)) for i in range(members)]

  def values_of(params: list[Any]) -> Callable[..., list[dict[str, np.ndarray]]]:
    placed = [put(params[i : i + mesh.size]) for i in range(0, len(params), mesh.size)]

    def values(rows: hosts.Rows, key: int) -> list[dict[str, np.ndarray]]:
      on_all = jax.device_put(hosts.all_rows(rows), parallel.replicated(mesh))
      found = jax.device_get([lanes.values(some, on_all, np.int32(key)) for some in placed])
      return [member(found[i // mesh.size], i % mesh.size) for i in range(len(params))]

    return values

  return dataclasses.replace(
    alone.program_of(lone),
    mesh=mesh,
    step=lambda state, rows, h: lanes.step(rows[0], state, rows[1], h),
    place=place,
    put_rows=put_rows,
    put_hyperparameters=put,
    next_stage=functools.partial(alone.anew, (by_member, by_member), several=True),
    told=lambda metrics: {name: np.asarray(x)[:members] for name, x in metrics.items()},
    values_of=values_of,
    layers=layers,
    fetch=jax.device_get,
    member=member,
    stride=lanes.stride,
    at_once=min(mesh.size * lanes.at_once, members),
  )


def _stride(config: Config) -> int:
  if not parallel.mapped(config):
    return 1
  rows = jax.tree.leaves(tasks.batch_shape(config, config.train.batch_size))
  return max(1, min(STRIDE, STRIDE_BYTES // sum(math.prod(x.shape) * x.dtype.itemsize for x in rows)))


def _stack(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)
