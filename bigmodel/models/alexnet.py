"""AlexNet (Krizhevsky et al. 2012), in the three forms that have this name.

`grouped` is the original for two GPUs, whose second, fourth and fifth convolutions have two groups
of channels; `ungrouped` has ordinary convolutions; `one_weird_trick` (Krizhevsky 2014) is narrower
and has no normalisation, as in torchvision.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, POSITIVE, OneOf, field, read
from bigmodel.models.layers.basic import Matrix, dropout, outputs, projection
from bigmodel.models.layers.images import Convolution, convolution, convolved, max_pool
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts

TASKS = ("classification",)
SUPPLIED = ()
_convolution = functools.partial(Convolution, bias=True)
FORMS = {
  "grouped": (
    _convolution(96, 11, stride=4),
    _convolution(256, 5, padding=2, groups=2),
    _convolution(384, 3, padding=1),
    _convolution(384, 3, padding=1, groups=2),
    _convolution(256, 3, padding=1, groups=2),
  ),
  "ungrouped": (
    _convolution(96, 11, stride=4),
    _convolution(256, 5, padding=2),
    _convolution(384, 3, padding=1),
    _convolution(384, 3, padding=1),
    _convolution(256, 3, padding=1),
  ),
  "one_weird_trick": (
    _convolution(64, 11, stride=4, padding=2),
    _convolution(192, 5, padding=2),
    _convolution(384, 3, padding=1),
    _convolution(256, 3, padding=1),
    _convolution(256, 3, padding=1),
  ),
}
POOLED = (0, 1, 4)  # the convolutions that are followed by pooling
NORMALISED = ("grouped", "ungrouped")


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)


def check(config: Config) -> None:
  model = config.model
  if model.inputs:
    require(len(model.inputs) == 3, f"config.model.inputs: {model.inputs} is not (height, width, channels)")
    small = min(shape_of(config).sides(side)[-1] for side in model.inputs[:2])
    require(
      small > 0, f"config.model.inputs: images of {model.inputs[0]} x {model.inputs[1]} are too small for AlexNet"
    )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike) -> "AlexNet":
  return AlexNet(shape_of(config), dtype)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters."""

  form: str = field("grouped", "variant of AlexNet", OneOf(FORMS))
  hidden: int = field(4096, "units of each of the two hidden dense layers", POSITIVE)
  dropout: float = field(0.5, "share of activations dropped in training", BELOW_ONE)

  def describe(self) -> dict[str, object]:
    return {"family": "alexnet", **dataclasses.asdict(self), "inputs": list(self.inputs)}

  def sides(self, side: int) -> list[int]:
    """Returns the side of the image after each convolution, and the final side."""
    sides = []
    for layer, conv in enumerate(FORMS[self.form]):
      sides.append(convolved(side, conv.size, conv.stride, conv.padding))
      side = convolved(sides[-1], 3, 2) if layer in POOLED else sides[-1]
    return [*sides, side]

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per example."""
    del context
    params, products, channels_in = 0, 0, self.inputs[2]
    heights, widths = self.sides(self.inputs[0]), self.sides(self.inputs[1])
    for conv, height, width in zip(FORMS[self.form], heights, widths, strict=False):
      weights = conv.size * conv.size * channels_in // conv.groups * conv.channels
      params, products = params + weights + conv.channels, products + weights * height * width
      channels_in = conv.channels
    features = (heights[-1] * widths[-1] * channels_in, self.hidden, self.hidden, self.outputs)
    matrices = sum(a * b for a, b in itertools.pairwise(features))
    return plain_counts(params + matrices + sum(features[1:]), 2.0 * (products + matrices))


def _respond(x: jax.Array) -> jax.Array:
  """Local response normalisation over 5 channels (Krizhevsky et al. 2012, section 3.3)."""
  squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (2, 2)))
  near = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
  return (x * (2 + 1e-4 * near) ** -0.75).astype(x.dtype)


class AlexNet(nn.Module):
  """images [B, height, width, channels] -> (logits float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape = self.shape
    x = x.astype(self.dtype)
    for layer, conv in enumerate(FORMS[shape.form]):
      role = Role.HIDDEN if layer else Role.INPUT
      x = jax.nn.relu(convolution(self, f"conv_{layer}", x, conv, role))
      if shape.form in NORMALISED and layer < 2:
        x = _respond(x)
      x = max_pool(x, 3, 2) if layer in POOLED else x
    x_BxF = x.reshape(x.shape[0], -1)
    for layer, (axis, role) in enumerate((("inputs", Role.INPUT), ("embed", Role.HIDDEN))):
      x_BxF = dropout(self, x_BxF, shape.dropout)
      x_BxF = projection(self, f"layer_{layer}", x_BxF, shape.hidden, Matrix((axis, "mlp"), role, 2**0.5, bias=True))
      x_BxF = jax.nn.relu(x_BxF)
    out = outputs(self, x_BxF, shape.outputs)
    return out, {}


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
