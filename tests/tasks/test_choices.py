"""Multiple choice: likelihoods count the choices only, and errors name the line of an invalid question."""

import json

import numpy as np
import pytest

from bigmodel.data.tokenizer import bytes_tokenizer
from bigmodel.errors import UserError
from bigmodel.tasks import choices

CONTEXT = 24


def ask(tmp_path, *lines):
  path = tmp_path / "questions.jsonl"
  path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  return choices.read(str(path), bytes_tokenizer(), CONTEXT)


def losses(rows):
  """Returns losses of a model in which a byte costs its place in the alphabet; targets are rows[:, 1:]."""
  return np.asarray(rows)[:, 1:].astype(float) - ord("a")


def test_the_likeliest_choice_in_total_and_per_byte(tmp_path):
  questions = ask(
    tmp_path,
    {"question": "zzz ", "choices": ["b", "ab", "aaaa"], "answer": 2},  # 1, 1 and 0 in all
    {"question": "q", "choices": ["c", "bbb"], "answer": 1},  # 2 and 3 in all; 2 and 1 per byte
  )
  found = choices.score(questions, losses, CONTEXT, batch=4)
  assert found["questions"] == 2
  assert found["accuracy"] == 0.5
  assert found["accuracy_per_byte"] == 1.0
  assert found["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 2: is not"),
    ({"question": "a", "choices": ["b"], "answer": 0}, "line 2: needs a question and at least two choices"),
    ({"question": "a", "choices": ["b", 3], "answer": 0}, "line 2: needs"),
    ({"question": "a", "choices": ["b", "c"], "answer": 2}, "line 2: answer 2 is not an index of 2"),
    ({"question": "a" * 30, "choices": ["b", "c"], "answer": 0}, "31 tokens are more than the context of 24"),
  ],
)
def test_invalid_questions_are_refused_with_their_line(tmp_path, line, message):
  with pytest.raises(UserError, match=message):
    ask(tmp_path, {"question": "a", "choices": ["b", "c"], "answer": 1}, line)
