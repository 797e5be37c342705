"""The common base of the programs of packs, batched or on lanes."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from bigmodel import optim
from bigmodel.parallel import hosts
from bigmodel.train.programs.protocol import Arguments, BatchValues, Evaluator, Result
from bigmodel.train.programs.single import Single
from bigmodel.train.step import State
from bigmodel.types import Params

Tree = TypeVar("Tree")


class Pack:
  """Several members of one shape. The program of a single run computes everything that involves one member only."""

  stride = 1
  at_once = 1

  def __init__(self, single: Single, mesh: Mesh, members: int):
    self.mesh = mesh
    self.members = members
    self.shapes = single.shapes
    self._single = single

  def init(self, seed: int) -> State:
    return self._single.init(seed)

  def optimizer_state(self, params: Params) -> optim.State:
    return self._single.optimizer_state(params)

  def fetch(self, state: State) -> State:
    return jax.device_get(state)

  def member(self, state: State, index: int) -> State:
    return member_of(state, index)

  def values(self, params: Params, rows: hosts.Rows, key: int) -> BatchValues:
    return self._single.values(params, rows, key)

  def evaluator(self, params: Sequence[Params]) -> Evaluator:
    return self._single.evaluator(params)

  def generating(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    return self._single.generating(function)


def stacked(trees: Sequence[Tree]) -> Tree:
  """One tree whose arrays have a new first axis, along which the given trees follow each other; on the host."""
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)


def member_of(tree: Tree, index: int) -> Tree:
  """Entry `index` along the first axis of every array of a tree."""
  return jax.tree.map(lambda x: x[index], tree)
