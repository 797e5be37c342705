"""The program of a pack whose members are computed together by `vmap`, which suits accelerators."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel import hardware, optim, parallel
from bigmodel.config import Config
from bigmodel.parallel import hosts
from bigmodel.train.programs import single
from bigmodel.train.programs.pack import Pack, member_of, stacked
from bigmodel.train.programs.protocol import PlacedRows
from bigmodel.train.statistics import LayerStatistics
from bigmodel.train.step import Metrics, State


class Batched(Pack):
  """A pack as one batched computation: state, rows and hyperparameters have a leading axis M, spread over `member`."""

  def __init__(self, program: single.Single, config: Config, mesh: Mesh, members: int):
    super().__init__(program, mesh, members)
    self._one_of_pack = single.Single(config, mesh, packed=True)
    self._by_member = parallel.member_sharding(mesh)
    # Each array of the state has a leading axis of members.
    self._state_sharding: State = jax.tree.map(lambda x: _for_each_member(x.sharding), self._one_of_pack.shapes)
    self._rows_sharding = _for_each_member(parallel.batch_sharding(mesh))
    self._step = jax.jit(
      jax.vmap(self._one_of_pack.one_step, spmd_axis_name="member"),
      donate_argnums=0,
      in_shardings=(self._state_sharding, self._rows_sharding, self._by_member),
      out_shardings=(self._state_sharding, self._by_member),
      compiler_options=hardware.compiler_options(),
    )

  def place(self, states: Sequence[State]) -> State:
    return jax.device_put(stacked(states), self._state_sharding)

  def put_rows(self, *steps: Sequence[hosts.Rows]) -> PlacedRows:
    (rows_M,) = steps
    return PlacedRows(1, jax.device_put(stacked([hosts.all_rows(rows) for rows in rows_M]), self._rows_sharding))

  def put_hyperparameters(self, hyperparameters: Sequence[optim.Hyperparameters]) -> optim.Hyperparameters:
    return jax.device_put(stacked(hyperparameters), self._by_member)

  def step(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    with self._one_of_pack.on_mesh():
      return self._step(state, rows.arrays, h)

  def fetch_metrics(self, metrics: Metrics) -> dict[str, np.ndarray]:
    return {name: np.reshape(np.asarray(x_M), (self.members, 1)) for name, x_M in metrics.items()}

  def layer_statistics(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> list[LayerStatistics]:
    state, arrays, h = jax.device_get((state, rows.arrays, h))
    of_member = [member_of((state, arrays, h), i) for i in range(self.members)]
    return [self._single.statistics_of_step(*arguments) for arguments in of_member]

  def next_stage(self, state: State, h: optim.Hyperparameters, before: Config, config: Config) -> State:
    shardings = self._state_sharding.params, self._state_sharding.opt_state
    return single.begin_stage(shardings, state, h, before, config, packed=True)


def _for_each_member(sharding: NamedSharding) -> NamedSharding:
  """The sharding of a member's array, for the arrays of all members along a new first axis."""
  spec = PartitionSpec("member", *sharding.spec)
  return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
