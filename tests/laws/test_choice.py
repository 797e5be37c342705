"""Which law fits a table: the best forecaster of hidden points first, in each of its groups."""

import numpy as np
import pytest

from bigmodel.files import UserError
from bigmodel.laws import choice
from bigmodel.laws.forms import LAWS

X = np.geomspace(1e6, 1e9, 16)


def columns_of(path, **groups):
  lines = [f"{name},{x},{y}" for name, losses in groups.items() for x, y in zip(X, losses, strict=False)]
  path.write_text("\n".join(["model,size,ce", *lines]) + "\n")
  return choice.Columns(str(path), {"x": "size"}, "ce", group="model")


def test_in_each_group_the_law_that_forecasts_hidden_points_best_comes_first(tmp_path):
  noise = np.exp(1e-4 * np.random.default_rng(0).normal(size=16))
  columns = columns_of(tmp_path / "p.csv", floor=(0.3 + 30 * X**-0.25) * noise, none=30 * X**-0.25 * noise)
  laws = [LAWS["power"], LAWS["power_offset"]]
  found = choice.fit(columns, laws)["laws"]
  assert [(law["group"], law["name"]) for law in found[:2]] == [("floor", "power_offset"), ("floor", "power")]
  assert found[2]["backtest"]["rms_log_error"] <= found[3]["backtest"]["rms_log_error"]
  assert {law["group"] for law in found[2:]} == {"none"}


def test_laws_with_too_few_points_are_left_out_only_where_the_choice_is_ours(tmp_path):
  columns = columns_of(tmp_path / "p.csv", short=30 * X[:3] ** -0.25)
  laws = [LAWS["power"], LAWS["power_offset"]]
  assert [law["name"] for law in choice.fit(columns, laws, skip_unfit=True)["laws"]] == ["power"]
  assert "power_offset has 3 parameters and 3 points" in choice.fit(columns, laws, skip_unfit=True)["warnings"][0]
  with pytest.raises(UserError, match="power_offset has 3 parameters and 3 points"):
    choice.fit(columns, laws)


def test_what_is_tried_follows_from_the_columns():
  assert [law.columns for law in choice.usual_laws(choice.Columns("", {"x": "size"}, "ce"))] == [("x",)] * 4
  assert [law.columns for law in choice.usual_laws(choice.Columns("", {"N": "n", "D": "d"}, "ce"))] == [("N", "D")] * 3
