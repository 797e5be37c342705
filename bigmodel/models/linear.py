"""Linear and softmax regression: a multilayer perceptron without hidden layers."""

from jax.typing import DTypeLike

from bigmodel.config import Config
from bigmodel.declarations import read
from bigmodel.models import mlp
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples

TASKS, SUPPLIED, Shape = mlp.TASKS, mlp.SUPPLIED, ExampleShape
resolve, example = resolve_examples, mlp.example


def check(config: Config) -> None:
  del config


def shape_of(config: Config) -> mlp.Shape:
  return mlp.Shape(**vars(read(Shape, config.model)), hidden=())


def build(config: Config, dtype: DTypeLike) -> mlp.MLP:
  return mlp.MLP(shape_of(config), dtype)
