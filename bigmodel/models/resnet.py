"""Residual networks (He et al. 2016): 18 to 152 layers for photographs, and small ones for small images.

The 3 x 3 convolutions of bottlenecks have the strides, as in torchvision. Group
normalisation replaces batch normalisation: see `layers.images.GroupNorm`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import DEPTH, POSITIVE, OneOf, field, read
from bigmodel.models.layers.basic import outputs
from bigmodel.models.layers.images import Convolution, GroupNorm, convolution, convolved, max_pool
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts

TASKS = ("classification",)
SUPPLIED = ()
BLOCKS = {"basic": 1, "bottleneck": 4}  # how many times wider a block's output is than its 3 x 3 convolutions
STEMS = ("large", "small")  # 7 x 7 with stride 2 and pooling; 3 x 3


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)


def check(config: Config) -> None:
  model = config.model
  require(
    bool(model.stages) and all(depth > 0 for depth in model.stages),
    f"config.model.stages: {model.stages} must be positive numbers of blocks",
  )
  most = DEPTH.high
  require(sum(model.stages) <= most, f"config.model.stages: {sum(model.stages)} blocks; at most {most:,}")
  require(
    not model.inputs or len(model.inputs) == 3,
    f"config.model.inputs: {model.inputs} is not (height, width, channels)",
  )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike) -> "ResNet":
  return ResNet(shape_of(config), dtype)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters."""

  block: str = field("basic", "two 3 x 3 convolutions, or a bottleneck", OneOf(BLOCKS))
  stages: tuple[int, ...] = field((2, 2, 2), "blocks of each stage; each stage halves the sides and doubles the width")
  width: int = field(32, "channels of the first stage's 3 x 3 convolutions", POSITIVE)
  stem: str = field("small", "first convolution: large (7 x 7, stride 2, pooled) or small (3 x 3)", OneOf(STEMS))
  groups: int = field(32, "largest number of groups of channels in group normalisation", POSITIVE)

  def describe(self) -> dict[str, object]:
    lists = {"inputs": list(self.inputs), "stages": list(self.stages)}
    return {"family": "resnet", **dataclasses.asdict(self), **lists}

  def convolutions(self) -> list[tuple[str, int, int, int, int]]:
    """Returns all convolutions of the blocks: (name, channels, size, stride, index of the block it begins, or -1)."""
    layers, channels, number = [], self.width, 0
    for stage, depth in enumerate(self.stages):
      inner = self.width * 2**stage
      for i in range(depth):
        outer, stride = inner * BLOCKS[self.block], 2 if stage and not i else 1
        sizes = ((inner, 3, stride), (outer, 3, 1))
        if self.block == "bottleneck":
          sizes = ((inner, 1, 1), (inner, 3, stride), (outer, 1, 1))
        for place, (width, size, step) in enumerate(sizes):
          layers.append((f"block_{number}_conv_{place}", width, size, step, number if not place else -1))
        if stride != 1 or channels != outer:
          layers.append((f"block_{number}_shortcut", outer, 1, stride, -1))
        channels, number = outer, number + 1
    return layers

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per example."""
    del context
    size = 7 if self.stem == "large" else 3
    weights = size * size * self.inputs[2] * self.width
    sides = [convolved(side, 7, 2, 3) if self.stem == "large" else side for side in self.inputs[:2]]
    params, products = weights + 2 * self.width, weights * sides[0] * sides[1]
    if self.stem == "large":
      sides = [convolved(side, 3, 2, 1) for side in sides]
    channels = entering = self.width
    entered = sides
    for name, width, size, stride, begins in self.convolutions():
      if begins >= 0:
        entering, entered = channels, sides
      shortcut = name.endswith("shortcut")
      source, where = (entering, entered) if shortcut else (channels, sides)
      after = [convolved(side, size, stride, size // 2) for side in where]
      weights = size * size * source * width
      params, products = params + weights + 2 * width, products + weights * after[0] * after[1]
      if not shortcut:
        channels, sides = width, after
    return plain_counts(params + (channels + 1) * self.outputs, 2.0 * (products + channels * self.outputs))


class ResNet(nn.Module):
  """images [B, height, width, channels] -> (logits float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape = self.shape

    def conv(x: jax.Array, name: str, channels: int, size: int, stride: int, role: Role = Role.HIDDEN) -> jax.Array:
      x = convolution(self, name, x, Convolution(channels, size, stride, size // 2), role)
      return GroupNorm(shape.groups, name=f"{name}_norm")(x)

    x = x.astype(self.dtype)
    if shape.stem == "large":
      x = max_pool(jax.nn.relu(conv(x, "stem", shape.width, 7, 2, Role.INPUT)), 3, 2, 1)
    else:
      x = jax.nn.relu(conv(x, "stem", shape.width, 3, 1, Role.INPUT))
    layers, entering = shape.convolutions(), x
    for i, (name, channels, size, stride, begins) in enumerate(layers):
      if begins >= 0:
        entering = x
      if name.endswith("shortcut"):
        entering = conv(entering, name, channels, size, stride)
      else:
        x = conv(x, name, channels, size, stride)
      ends = i + 1 == len(layers) or layers[i + 1][4] >= 0
      if ends:
        x = jax.nn.relu(x + entering)
      elif not layers[i + 1][0].endswith("shortcut"):
        x = jax.nn.relu(x)
    pooled_BxC = jnp.mean(x, axis=(1, 2))
    out = outputs(self, pooled_BxC, shape.outputs, "inputs")
    return out, {}


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
