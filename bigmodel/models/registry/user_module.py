"""A Flax (Linen) module in a user's file as a family of models: `config.model.family = FILE.py:NAME`.

    class Net(nn.Module):
      outputs: int = 0  # filled in by the data
      width: int = 64  # config.model.width

      roles = {"Dense_0": "hidden", "Dense_1": "output"}  # optional

      @nn.compact
      def __call__(self, x): ...  # the outputs, float[B, outputs]

Its attributes with plain defaults are the fields of `config.model`. A module with a field `vocab` reads tokens
int[B, T] and gives logits float[B, T, vocab]. A module with a field `outputs` reads examples float[B, *inputs] and
gives float[B, outputs]. Fields `vocab`, `outputs`, `inputs` and `context` that are 0 or () are filled in by the data.
An attribute `dtype` gets `config.train.compute_dtype`.

Parameters are counted in the module's abstract initial values, FLOPs in its matrix products and convolutions. `roles`
maps patterns of parameters' dotted names to names of `layers.roles.Role`. Parameters without a role train with Adam
if the optimizer is for hidden matrices only, and cannot be used with `optim.parametrization`. They are replicated
over a mesh, unless `nn.with_logical_partitioning` names their axes.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.typing import DTypeLike

from bigmodel import declarations, user_files
from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, nearest, require
from bigmodel.declarations import Field, Value
from bigmodel.errors import UserError
from bigmodel.models.layers.experts import Auxiliary
from bigmodel.models.layers.roles import TABLES, Parameter, Path, Role, dotted
from bigmodel.models.registry.flops import product_flops
from bigmodel.models.registry.protocol import Facts, Model
from bigmodel.types import Params

WHERE = "config.model.family"
NOT_FIELDS = ("parent", "name", "dtype")  # attributes of a module that are not fields of a config
ROLES = {role.name.lower(): role for role in Role if role is not Role.UNKNOWN}


@functools.cache
def family(name: str) -> "UserFamily":
  """Returns the family of a completed name, FILE.py:NAME@HASH."""
  module = user_files.load(name, WHERE)
  if not isinstance(module, type) or not issubclass(module, nn.Module):
    raise UserError(f"{WHERE}: {name} is a {type(module).__name__}, not a class of Flax modules (flax.linen.Module)")
  fields = _fields_of(module, name)
  require(
    ("vocab" in fields) != ("outputs" in fields),
    f"{WHERE}: {name} needs a field 'vocab: int = 0' if it reads tokens, or 'outputs: int = 0' if it reads examples",
  )
  return UserFamily(name, module, "vocab" in fields, _patterns_of(module, name))


def _fields_of(module: type[nn.Module], name: str) -> dict[str, Field]:
  """Returns the attributes of a module that are fields of the config: those with a plain default."""
  fields = {}
  for attribute in dataclasses.fields(module):
    if attribute.name in NOT_FIELDS or not attribute.init:
      continue
    has_default = attribute.default is not dataclasses.MISSING
    require(
      has_default or attribute.default_factory is not dataclasses.MISSING,
      f"{WHERE}: {name}: the attribute {attribute.name!r} has no default",
    )
    require(attribute.name != "family", f"{WHERE}: {name}: 'family' cannot be an attribute; it names the family itself")
    if "config" in attribute.metadata:
      fields[attribute.name] = attribute.metadata["config"]
    elif has_default and _is_plain(attribute.default):
      fields[attribute.name] = Field(cast(Value, attribute.default), f"attribute of {module.__name__}")
  return fields


def _is_plain(value: object) -> bool:
  """Whether a config can hold the value."""
  return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, bool | int | float | str)


def _patterns_of(module: type[nn.Module], name: str) -> tuple[tuple[str, Role], ...]:
  """Returns the patterns of `roles` with their roles."""
  patterns = []
  for pattern, role in getattr(module, "roles", {}).items():
    if role not in ROLES:
      raise UserError(f"{WHERE}: {name}: no role {role!r}{nearest(role, ROLES)}; known: {', '.join(ROLES)}")
    patterns.append((pattern, ROLES[role]))
  return tuple(patterns)


@dataclasses.dataclass(frozen=True)
class UserFamily:
  """A user's module with the interface of `protocol.Family`."""

  name: str
  module: type[nn.Module]
  reads_tokens: bool
  patterns: tuple[tuple[str, Role], ...]

  SUPPLIED = ()

  @property
  def TASKS(self) -> tuple[str, ...]:
    return ("causal_lm",) if self.reads_tokens else ("classification", "regression")

  @functools.cached_property
  def Shape(self) -> type:
    """A dataclass of the module's fields, which always has `inputs`, the shape of an example."""
    fields = _fields_of(self.module, self.name)
    if not self.reads_tokens:
      fields.setdefault("inputs", Field((), "shape of one example; (): that of the data"))
    columns = [
      (name, type(one.default), dataclasses.field(default=one.default, metadata={"config": one}))
      for name, one in fields.items()
    ]
    return dataclasses.make_dataclass("Shape", columns, frozen=True)

  def resolve(self, model: Config, facts: Facts) -> None:
    for name in ("vocab", "outputs", "inputs", "context"):
      if name in model:
        model[name] = model[name] or facts[name]

  def check(self, config: Config) -> None:
    has_dtype = any(attribute.name == "dtype" for attribute in dataclasses.fields(self.module))
    require(
      has_dtype or config.train.compute_dtype == "float32",
      f"config.train.compute_dtype: {config.train.compute_dtype}, but {self.name} has no attribute 'dtype' for its"
      " layers; use float32, or add one",
    )
    sizes = ("vocab",) if self.reads_tokens else ("inputs", "outputs")
    if all(config.model[name] for name in (*sizes, *({"context"} & set(config.model)))):
      traced(self.shape_of(config))

  def shape_of(self, config: Config) -> "UserShape":
    fields = declarations.read(self.Shape, config.model)
    return UserShape(self, fields, config.data.context if self.reads_tokens else 1)

  def build(self, config: Config, dtype: DTypeLike) -> Model:
    return self.model_of(self.shape_of(config), dtype)

  def model_of(self, shape: "UserShape", dtype: DTypeLike) -> "UserModel":
    attributes = {attribute.name for attribute in dataclasses.fields(self.module)}
    values = {name: value for name, value in shape.values().items() if name in attributes}
    return UserModel(self.module(**values, **({"dtype": dtype} if "dtype" in attributes else {})), self)

  def example(self, shape: "UserShape") -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros(x.shape, x.dtype) for x in (shape.inputs_like(),))


@dataclasses.dataclass(frozen=True)
class UserShape:
  """The values that determine the parameters of a user's model."""

  family: UserFamily
  fields: object  # of the family's `Shape`
  row: int  # tokens of a row; 1 where rows are examples

  def values(self) -> dict[str, Value]:
    """Returns the fields of the config with their values."""
    return dict(vars(self.fields))

  def inputs_like(self) -> jax.ShapeDtypeStruct:
    """Returns an abstract batch of one row."""
    if self.family.reads_tokens:
      return jax.ShapeDtypeStruct((1, self.row), jnp.int32)
    return jax.ShapeDtypeStruct((1, *cast("tuple[int, ...]", self.values()["inputs"])), jnp.float32)

  def outputs_shape(self) -> tuple[object, ...]:
    """Returns the required shape of the outputs for that batch."""
    values = self.values()
    return (1, self.row, values["vocab"]) if self.family.reads_tokens else (1, values["outputs"])

  def describe(self) -> dict[str, object]:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in self.values().items()}
    return {"family": user_files.without_path(self.family.name), **plain}

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per token or example. Embeddings are parameters with roles of tables."""
    del context
    trace = traced(self)
    leaves = jax.tree.leaves(trace.params, is_leaf=lambda x: isinstance(x, Parameter))
    sizes = [(leaf.role, meta.unbox(leaf).size) for leaf in leaves]
    embedding = sum(size for role, size in sizes if role in TABLES)
    return plain_counts(sum(size for _, size in sizes), trace.forward_flops / self.row, embedding)


class Traced(NamedTuple):
  params: Params  # abstract, boxed
  forward_flops: float  # of one row


@functools.lru_cache(maxsize=256)
def traced(shape: UserShape) -> Traced:
  """Returns the model's abstract parameters and FLOPs; raises if it cannot be traced or has wrong outputs."""
  name, inputs = shape.family.name, shape.inputs_like()
  model = shape.family.model_of(shape, jnp.float32)
  try:
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    variables = {"params": meta.unbox(params)}
    outputs, _ = jax.eval_shape(model.apply, variables, inputs)
    flops = product_flops(model.apply, variables, inputs)
  except UserError:
    raise
  except Exception as error:
    message = " ".join(str(error).split())
    raise UserError(
      f"{WHERE}: {name} fails on inputs {inputs.dtype}{list(inputs.shape)}: {type(error).__name__}: {message}"
    ) from error
  require(
    outputs.shape == shape.outputs_shape(),
    f"{WHERE}: {name} gives outputs of shape {list(outputs.shape)} for inputs {inputs.dtype}{list(inputs.shape)};"
    f" they must be {list(shape.outputs_shape())}",
  )
  return Traced(params, flops)


@dataclasses.dataclass(frozen=True)
class UserModel:
  """A user's module with the interface of `protocol.Model`."""

  module: nn.Module
  family: UserFamily

  def init(self, key: jax.Array, *inputs: jax.Array) -> Mapping[str, Params]:
    variables = self.module.init(key, *inputs)
    others = sorted(set(variables) - {"params"})
    require(
      not others,
      f"{WHERE}: {self.family.name} keeps {', '.join(others)} besides parameters, as batch normalisation does; use"
      " group or layer normalisation",
    )
    require("params" in variables, f"{WHERE}: {self.family.name} has no parameters")
    return {"params": self._labelled(variables["params"])}

  def apply(
    self, variables: Mapping[str, Params], *inputs: jax.Array, rngs: Mapping[str, jax.Array] | None = None
  ) -> tuple[jax.Array, Auxiliary]:
    outputs = self.module.apply(variables, *inputs, rngs=cast(Any, rngs))
    require(
      hasattr(outputs, "shape"),
      f"{WHERE}: {self.family.name} gives a {type(outputs).__name__}, not an array of outputs",
    )
    return cast(jax.Array, outputs).astype(jnp.float32), {}

  def _labelled(self, params: Params) -> Params:
    """Boxes the parameters with axes and roles: those that they have already, or those of `roles`."""
    unused = {pattern for pattern, _ in self.family.patterns}

    def label(path: Path, leaf: Any) -> Parameter:
      name = dotted(path)
      matching = [(pattern, role) for pattern, role in self.family.patterns if re.search(pattern, name)]
      unused.difference_update(pattern for pattern, _ in matching)
      value = meta.unbox(leaf)
      axes = tuple(leaf.names) if isinstance(leaf, nn.Partitioned) else (None,) * value.ndim
      declared = leaf.role if isinstance(leaf, Parameter) else None
      return Parameter(value, axes, role=matching[0][1] if matching else declared or Role.UNKNOWN)

    labelled = jax.tree_util.tree_map_with_path(label, params, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    require(
      not unused,
      f"{WHERE}: {self.family.name}: its roles contain {sorted(unused)[:1]}, which matches no parameter",
    )
    return labelled
