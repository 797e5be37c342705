"""Names of types that several rooms use."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

PyTree = Any  # nested dicts, tuples and dataclasses of arrays, as jax.tree walks them
Params = PyTree  # a model's parameters, as flax nests them
Batch = Mapping[str, jax.Array]  # arrays by name, rows first


class Device(Protocol):
  """A device of JAX, which has no type for type checkers."""

  @property
  def id(self) -> int: ...

  @property
  def process_index(self) -> int: ...

  @property
  def platform(self) -> str: ...

  @property
  def device_kind(self) -> str: ...

  def memory_stats(self) -> Mapping[str, int] | None: ...
