"""Every parameter declares its role where it is created, and optimizers use the role, not the name."""

import re
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from test_families import CASES, make  # its folder is on the path of pytest

from bigmodel import models, optim
from bigmodel.config import Config, ConfigDict
from bigmodel.errors import UserError
from bigmodel.models.layers.basic import Matrix, projection
from bigmodel.models.layers.roles import STACKED, Role
from bigmodel.models.registry import families

VECTORS = (Role.BIAS, Role.NORM, Role.LAST_NORM)
MATRICES = (Role.INPUT, Role.HIDDEN, Role.OUTPUT, Role.OUTPUT_TABLE)
TIED_TABLES = (Role.TABLE, Role.SHRINKING_TABLE, Role.SCALED_TABLE)  # which may give the logits, too


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_every_family_has_a_role_that_fits_its_axes(name):
  config = make(name)
  labels, boxed = models.labels(config), models.abstract_parameters(config)
  shapes = {path: x.shape for path, x in flat(nn.meta.unbox(boxed)).items()}
  assert {path for path, _ in labels} == set(shapes)
  for path, label in labels:
    assert len(label.axes) == len(shapes[path]), path
    assert all(axis in STACKED for axis in label.axes[: label.stacked]), path
    assert not (label.role in VECTORS and label.is_matrix), path
    assert not (label.role in MATRICES and not label.is_matrix), path
    assert label.is_hidden == (label.is_matrix and label.role in (Role.HIDDEN, Role.QUERY, Role.BRANCH_END)), path
    of_data = label.axes[label.stacked] in ("vocab", "positions", "types", "inputs")
    assert not (of_data and len(label.axes) == 2 and label.is_hidden), path
    assert label.in_stack == (shapes[path][0] == config.model.get("layers") and "blocks" in path), path
  roles = {label.role for _, label in labels}
  assert roles & {Role.OUTPUT, Role.OUTPUT_TABLE, *TIED_TABLES}
  if "head_size" in config.model:
    assert {Role.QUERY, Role.BRANCH_END} <= roles


def test_vectors_of_categories_are_a_table_like_those_of_numbers():
  """They were once treated as a hidden matrix, which Muon trained and whose initial values shrank with the width."""
  config = make("tabular", categories=(3, 4))
  config.optim.update(parametrization="mup", base=("model.width=4", "model.heads=1"))
  labels = models.labels(config).by_name
  assert labels["categories"] == labels["weight"]
  found = {name: rest for name, *rest in optim.parametrization.multiples(config)}
  assert found["categories"] == found["weight"]


def flat(tree):
  return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


class Anything(nn.Module):
  """A user's family of two layers, whose last layer has the name `head`."""

  head: str
  labelled: bool

  @nn.compact
  def __call__(self, x):
    x = projection(self, "body", x, 6, Matrix(("inputs", "mlp"), Role.HIDDEN))
    if not self.labelled:
      return nn.Dense(3, name=self.head)(x), {}
    return projection(self, self.head, x, 3, Matrix(("embed", "outputs"), Role.OUTPUT, bias=True)), {}


def config_of_anything(monkeypatch, head, labelled=True) -> Config:
  module = types.ModuleType("bigmodel.models.anything")
  module.__dict__.update(
    shape_of=lambda config: None,
    build=lambda config, dtype, **arguments: Anything(head, labelled),
    example=lambda shape: (jnp.zeros((1, 4)),),
  )
  monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setattr(families, "FAMILIES", (*models.FAMILIES, "anything"))
  return ConfigDict({"model": {"family": "anything"}, "data": {}, "optim": optim.defaults()})


@pytest.mark.parametrize("head", ["head", "readout", "blocks_of_answers", "layer_7", "w"])
@pytest.mark.parametrize("name", ["muon", "shampoo", "soap"])
def test_a_head_of_any_name_gets_no_optimizer_of_hidden_matrices(name, head, monkeypatch):
  config = config_of_anything(monkeypatch, head)
  config.optim.name = name
  params = nn.meta.unbox(models.build(config).init(jax.random.key(0), jnp.zeros((1, 4))))["params"]
  state = jax.eval_shape(lambda: optim.initial_state(optim.How.of(config), params))
  held = {path for path in flat(state) if re.search(rf"\.{head}$", path)}
  assert held
  assert all("'adam'" in path or ".adam." in path for path in held), held
  assert any(".hidden." in path and path.endswith(".body") for path in flat(state))


def test_a_parameter_without_a_role_is_refused_by_its_name(monkeypatch):
  config = config_of_anything(monkeypatch, "answers", labelled=False)
  with pytest.raises(UserError, match=r"config.model.family: its parameter answers\.(kernel|bias) has no role"):
    optim.How.of(config)
