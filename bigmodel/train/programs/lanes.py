"""The program of a pack on a CPU, whose cores are lanes: each trains its members one after another.

That is faster there than one batched computation. `CompiledLanes` is traced once for packs of all sizes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bigmodel import hardware, models, optim, parallel, tasks
from bigmodel.config import Config
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.registry.protocol import Supplied
from bigmodel.parallel import blocks, hosts
from bigmodel.tasks.task import Values
from bigmodel.train.programs import single
from bigmodel.train.programs.pack import Pack, member_of, stacked
from bigmodel.train.programs.protocol import BatchValues, Evaluator, PlacedRows
from bigmodel.train.statistics import LayerStatistics
from bigmodel.train.step import Batch, Metrics, Recipe, State, applied, train_step
from bigmodel.types import Params

STRIDE = 8  # steps that a member makes before the next one's turn, while its state is in the CPU's cache
STRIDE_BYTES = 4 << 20  # of the rows of these steps: larger rows would push the state out of the cache
AT_ONCE = 8  # members that each core evaluates before the host reads the results
AT_ONCE_BYTES = 64 << 20  # of their parameters

OneStep = Callable[[State, Batch, optim.Hyperparameters], tuple[State, Metrics]]
Steps = Callable[[jax.Array, State, Batch, optim.Hyperparameters], tuple[State, Metrics]]
Tree = TypeVar("Tree")


def stride_of(config: Config) -> int:
  """The most steps that a pack of this config makes in one call."""
  if not parallel.mapped(config):
    return 1
  rows = jax.tree.leaves(tasks.batch_shape(config, config.train.batch_size))
  return max(1, min(STRIDE, STRIDE_BYTES // sum(math.prod(x.shape) * x.dtype.itemsize for x in rows)))


class CompiledLanes:
  """The compiled functions of the lanes, for packs of any size.

  State, rows, hyperparameters and parameters have a leading axis of members, those of one lane beside each other.
  """

  def __init__(self, config: Config, mesh: Mesh):
    config = config.copy_and_resolve_references()  # a copy, because tracing reads it later
    self.mesh = mesh
    self.stride = stride_of(config)
    # Members that each lane evaluates in one go.
    self.at_once = min(AT_ONCE, max(1, AT_ONCE_BYTES // (4 * models.counts_of(config).params_total)))
    self._dtype = jnp.dtype(config.train.compute_dtype)
    has_blocks = "run_blocks" in models.family(config.model.family).SUPPLIED
    ways: Supplied = {"run_blocks": blocks.choose(config, mesh)} if has_blocks else {}
    self._model, self._task = models.build(config, self._dtype, **ways), tasks.build(config)
    recipe = Recipe(self._model.apply, self._task, optim.How.of(config), config.train.accumulate)
    one_step = functools.partial(train_step, recipe)
    self._steps = _several(jax.jit(one_step, inline=True), self.stride)
    compiled = functools.partial(jax.jit, compiler_options=hardware.compiler_options())
    by_lane = functools.partial(jax.shard_map, mesh=mesh, out_specs=PartitionSpec("member"), check_vma=False)
    shared, each = PartitionSpec(), PartitionSpec("member")
    self._step = compiled(by_lane(self._step_of_lane, in_specs=(shared, each, each, each)), donate_argnums=1)
    self._values = compiled(by_lane(self._values_of_lane, in_specs=(each, shared, shared)))

  def step(self, count: int, state: State, rows: Batch, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    """`count` steps of every member; rows and metrics are [members, stride, ...], with `count` meaningful entries."""
    return self._step(np.int32(count), state, rows, h)

  def values(self, params: Params, rows: Batch, key: int) -> Values:
    """The values of the same rows for one member on each lane."""
    return self._values(params, rows, np.int32(key))

  def _step_of_lane(
    self, count: jax.Array, state: State, rows: Batch, h: optim.Hyperparameters
  ) -> tuple[State, Metrics]:
    with exact_products(self._dtype):
      return jax.lax.map(lambda member: self._steps(count, *member), (state, rows, h))

  def _values_of_lane(self, params: Params, rows: Batch, key: jax.Array) -> Values:
    params = member_of(params, 0)
    with exact_products(self._dtype):
      values = self._task.values(applied(self._model.apply, params), rows, jax.random.key(key))
    return jax.tree.map(lambda x: x[None], values)


def _several(one_step: OneStep, most: int) -> Steps:
  """A function that makes up to `most` steps of one run, none beyond its horizon; its metrics are [most, ...]."""

  def steps(count: jax.Array, state: State, rows_K: Batch, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    shapes = jax.eval_shape(one_step, state, member_of(rows_K, 0), h)[1]
    empty_K = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)

    def make_step(k: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
      state, metrics_K = carry
      state, metrics = one_step(state, jax.tree.map(lambda x_K: x_K[k], rows_K), h)
      return state, jax.tree.map(lambda x_K, x: x_K.at[k].set(x), metrics_K, metrics)

    left = (h.first + h.steps - state.step).astype(jnp.int32)
    return jax.lax.fori_loop(0, jnp.minimum(count, left), make_step, (state, empty_K))

  return steps


class Lanes(Pack):
  """A pack whose members take turns on the lanes. Copies of the last member fill empty lanes and make no steps."""

  def __init__(self, program: single.Single, lanes: CompiledLanes, members: int):
    super().__init__(program, lanes.mesh, members)
    self.stride = lanes.stride
    self.at_once = min(lanes.mesh.size * lanes.at_once, members)
    self._lanes = lanes
    self._by_member = parallel.member_sharding(lanes.mesh)

  def place(self, states: Sequence[State]) -> State:
    past_every_horizon = np.int32(np.iinfo(np.int32).max)
    return self._put(states, dataclasses.replace(states[-1], step=past_every_horizon))

  def put_rows(self, *steps: Sequence[hosts.Rows]) -> PlacedRows:
    rows_KxM = [[hosts.all_rows(rows) for rows in rows_M] for rows_M in steps]
    rows_KxM += rows_KxM[-1:] * (self.stride - len(rows_KxM))
    return PlacedRows(len(steps), self._put([stacked(rows_K) for rows_K in zip(*rows_KxM, strict=True)]))

  def put_hyperparameters(self, hyperparameters: Sequence[optim.Hyperparameters]) -> optim.Hyperparameters:
    return self._put(hyperparameters)

  def step(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    return self._lanes.step(rows.steps, state, rows.arrays, h)

  def fetch_metrics(self, metrics: Metrics) -> dict[str, np.ndarray]:
    return {name: np.asarray(x_MxK)[: self.members] for name, x_MxK in metrics.items()}

  def layer_statistics(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> list[LayerStatistics]:
    """`Program.layer_statistics`, for the first of the rows' steps."""
    first = jax.tree.map(lambda x_MxK: x_MxK[:, 0], rows.arrays)
    arguments = jax.device_get((state, first, h))
    return [self._single.statistics_of_step(*member_of(arguments, i)) for i in range(self.members)]

  def next_stage(self, state: State, h: optim.Hyperparameters, before: Config, config: Config) -> State:
    return single.begin_stage((self._by_member, self._by_member), state, h, before, config, packed=True)

  def evaluator(self, params: Sequence[Params]) -> Evaluator:
    lanes = self.mesh.size
    turns = [self._put(params[i : i + lanes]) for i in range(0, len(params), lanes)]

    def evaluate(rows: hosts.Rows, key: int) -> list[BatchValues]:
      everywhere = jax.device_put(hosts.all_rows(rows), parallel.replicated(self.mesh))
      values = jax.device_get([self._lanes.values(params_of_turn, everywhere, key) for params_of_turn in turns])
      return [member_of(values[i // lanes], i % lanes) for i in range(len(params))]

    return evaluate

  def _put(self, trees: Sequence[Tree], filler: Tree | None = None) -> Tree:
    """The members' trees on the lanes; lanes without a member get copies of `filler`, or of the last member's tree."""
    missing = -len(trees) % self.mesh.size
    filler = trees[-1] if filler is None else filler
    return jax.device_put(stacked([*trees, *[filler] * missing]), self._by_member)
