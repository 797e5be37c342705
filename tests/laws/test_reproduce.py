"""Published digits, from published points."""

import pytest

from bigmodel.files import UserError
from bigmodel.laws import reproduce

NAMES = ("chinchilla_refit", "kaplan_conventions", "isoflop_exponents", "overtraining", "ladder", "routing")


@pytest.mark.parametrize("name", NAMES)
def test_a_paper_is_reproduced(scaling_data, name):
  claim, results = reproduce.run(name, str(scaling_data))
  assert "Claim (" in claim
  compared = [result for result in results if result.published is not None]
  assert compared
  assert [(r.what, r.ours, r.published) for r in compared if r.verdict != "the same"] == []


def test_an_unknown_name_is_refused():
  with pytest.raises(UserError, match=r"no experiment 'laddr' .did you mean 'ladder'"):
    reproduce.run("laddr")
