"""Configs: overrides, invalid fields, comparison and hashes."""

import pytest
from ml_collections import ConfigDict

from bigmodel import config as configs
from bigmodel.errors import UserError
from bigmodel.study import default_config


@pytest.fixture
def small():
  return ConfigDict({"seed": 0, "model": {"width": 64, "tied": True}, "optim": {"lr": 0.1}, "data": {"names": ("a",)}})


def test_values_take_the_type_of_the_field(small):
  for name, text in (("optim.lr", "1"), ("model.width", "1e2"), ("model.tied", "false"), ("data.names", "b")):
    configs.override(small, name, configs.parse_value(text))
  assert small.to_dict() == {
    "seed": 0,
    "model": {"width": 100, "tied": False},
    "optim": {"lr": 1.0},
    "data": {"names": ("b",)},
  }


@pytest.mark.parametrize(
  ("name", "value", "says"),
  [
    ("optim.lrr", 1.0, "did you mean 'optim.lr'"),
    ("optin.lr", 1.0, "did you mean 'optim'"),
    ("width", 1, "did you mean 'model.width'"),
    ("model.width", 1.5, "not of type int"),
    ("model.width", "wide", "not of type int"),
    ("model.tied", 1, "not of type bool"),
    ("model", 3, "is a group"),
  ],
)
def test_wrong_overrides_name_the_right_thing(small, name, value, says):
  with pytest.raises(UserError, match=says):
    configs.override(small, name, value)


def test_digest_ignores_what_is_left_out_and_nothing_else():
  base = configs.flatten(default_config())
  drop = ("parallel", "train.log_every")
  for name, value in base.items():
    changed = base | {name: (value or 0) + 1 if isinstance(value, int | float) else "other"}
    ignored = name.startswith("parallel.") or name == "train.log_every"
    assert (configs.digest(changed, drop) == configs.digest(base, drop)) == ignored, name


def test_flat_configs_round_trip_through_json():
  import json

  flat = configs.flatten(default_config())
  again = configs.unflatten(json.loads(json.dumps(flat)))
  assert configs.difference(flat, configs.flatten(again)) == ""
  assert configs.digest(flat) == configs.digest(configs.flatten(again))


def test_difference_lists_changed_fields():
  assert configs.difference({"a": 1, "b": (1, 2)}, {"a": 2, "b": [1, 2], "c": 0}) == "a: 1 -> 2; c: 'absent' -> 0"
