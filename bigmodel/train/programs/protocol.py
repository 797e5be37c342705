"""The interface of programs, which the training loop, evaluation and the planner use.

A program has `members`: one run, or the runs of a pack. Its state, rows, hyperparameters and metrics hold those of all
members in a layout that only the program knows: `place`, `put_rows` and `put_hyperparameters` put the members' values
together, `fetch`, `member` and `fetch_metrics` take them apart.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
from jax.sharding import Mesh

from bigmodel import optim
from bigmodel.config import Config
from bigmodel.parallel import hosts
from bigmodel.train.statistics import LayerStatistics
from bigmodel.train.step import Batch, Metrics, State
from bigmodel.types import Params

# The numbers of every token or example of a batch, on the host: [B, T] each, by name (see `tasks.task.Values`).
BatchValues = dict[str, np.ndarray]
# (rows, key) -> the values of these rows for each member; the key is that of the task's random numbers.
Evaluator = Callable[[hosts.Rows, int], list[BatchValues]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class PlacedRows:
  """Rows of all members on the devices, for one or several steps."""

  steps: int
  arrays: Batch


class Program(Protocol):
  """The compiled functions of one model shape, mesh and number of members."""

  @property
  def mesh(self) -> Mesh: ...

  @property
  def shapes(self) -> State:
    """Shapes, dtypes and shardings of the state of one member, as it is initialized and saved."""
    ...

  @property
  def stride(self) -> int:
    """The most steps that one call of `step` makes."""
    ...

  @property
  def at_once(self) -> int:
    """The most members that `evaluator` takes; more than 1 only for a pack on a CPU."""
    ...

  def init(self, seed: int) -> State:
    """The state of one member before its first step."""
    ...

  def optimizer_state(self, params: Params) -> optim.State:
    """The optimizer's state of one member before its first step from these parameters."""
    ...

  def place(self, states: Sequence[State]) -> State:
    """The program's state from the states of its members, in their order."""
    ...

  def put_rows(self, *steps: Sequence[hosts.Rows]) -> PlacedRows:
    """The rows of each member for each of one or more steps, at most `stride`, on the devices."""
    ...

  def put_hyperparameters(self, hyperparameters: Sequence[optim.Hyperparameters]) -> optim.Hyperparameters:
    """The members' hyperparameters, on the devices."""
    ...

  def step(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    """`(state, metrics)` after one step for each of the rows' steps. `state` is donated: it cannot be read again."""
    ...

  def fetch_metrics(self, metrics: Metrics) -> dict[str, np.ndarray]:
    """Metrics that `step` returned, on the host: [M, stride] each. Only steps that were made are meaningful."""
    ...

  def layer_statistics(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> list[LayerStatistics]:
    """`statistics.of_step` of each member's next step."""
    ...

  def next_stage(self, state: State, h: optim.Hyperparameters, before: Config, config: Config) -> State:
    """The program's state at the start of the stage `config`, after the stage `before` with hyperparameters `h`."""
    ...

  def fetch(self, state: State) -> State:
    """The program's state for `member` to take apart: on the host for a pack, unmoved for one run."""
    ...

  def member(self, state: State, index: int) -> State:
    """The state of one member, taken from a state that `fetch` returned."""
    ...

  def values(self, params: Params, rows: hosts.Rows, key: int) -> BatchValues:
    """The values of these rows under the parameters of one member."""
    ...

  def evaluator(self, params: Sequence[Params]) -> Evaluator:
    """`values` for several members, at most `at_once`, whose parameters are put on the devices once."""
    ...

  def generating(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function of one member's parameters, to be called with few tokens at a time while the weights stay in place."""
    ...
