"""The choice of a law for a table: laws are ranked by their forecasts of hidden points, within groups."""

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.laws import choice
from bigmodel.laws.facts import Backtest, LawFit
from bigmodel.laws.forms import LAWS
from bigmodel.laws.source import Source

X = np.geomspace(1e6, 1e9, 16)


def columns_of(path, **groups):
  lines = [f"{name},{x},{y}" for name, losses in groups.items() for x, y in zip(X, losses, strict=False)]
  path.write_text("\n".join(["model,size,ce", *lines]) + "\n")
  return Source(str(path), {"x": "size"}, "ce", group="model")


def test_in_each_group_the_law_that_forecasts_hidden_points_best_comes_first(tmp_path, monkeypatch):
  """A law without hidden points comes last. The errors are invented; `tests/cli/test_law_verbs.py` measures them."""
  columns = columns_of(tmp_path / "p.csv", a=30 * X**-0.25, b=60 * X**-0.25)
  errors = {("a", "power"): 0.2, ("a", "power_offset"): 0.1, ("b", "power"): 0.1, ("b", "power_shifted"): 0.3}

  def facts(law, values, loss, weights):
    group = "a" if loss[0] < 1.5 else "b"
    error = errors.get((group, law.name))
    backtest = None if error is None else Backtest(1, error, error)
    return LawFit(name=law.name, params={}, intervals={}, backtest=backtest)

  monkeypatch.setattr(choice.summary, "table_law", facts)
  laws = [LAWS[name] for name in ("power", "power_offset", "power_shifted")]
  found = [(law.group, law.name) for law in choice.fit(columns, laws).laws]
  assert found == [
    ("a", "power_offset"),
    ("a", "power"),
    ("a", "power_shifted"),
    ("b", "power"),
    ("b", "power_shifted"),
    ("b", "power_offset"),
  ]


def test_laws_with_too_few_points_are_left_out_only_if_the_user_named_none(tmp_path):
  columns = columns_of(tmp_path / "p.csv", short=30 * X[:3] ** -0.25)
  laws = [LAWS["power"], LAWS["power_offset"]]
  assert [law.name for law in choice.fit(columns, laws, skip_unfit=True).laws] == ["power"]
  assert "power_offset has 3 parameters and 3 points" in choice.fit(columns, laws, skip_unfit=True).warnings[0]
  with pytest.raises(UserError, match="power_offset has 3 parameters and 3 points"):
    choice.fit(columns, laws)


def test_the_laws_that_are_tried_depend_on_the_columns():
  assert [law.columns for law in choice.usual_laws(Source("", {"x": "size"}, "ce"))] == [("x",)] * 4
  assert [law.columns for law in choice.usual_laws(Source("", {"N": "n", "D": "d"}, "ce"))] == [("N", "D")] * 3
