"""Completions: scored by sacrebleu for prompts of any length; invalid lines are refused."""

import json

import numpy as np
import pytest

from bigmodel.data.tokenizer import bytes_tokenizer
from bigmodel.errors import UserError
from bigmodel.tasks import completions, metrics

PAIRS = [("the cat", "sat on the mat today"), ("a", "dog ran over there again"), ("the dog", "slept in the warm sun")]


def ask(tmp_path, *lines):
  path = tmp_path / "prompts.jsonl"
  path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  return completions.read(str(path), bytes_tokenizer(), 24)


def test_each_prompt_gets_its_completion_for_every_batch_size(tmp_path):
  tokens = bytes_tokenizer()
  answers = {prompt: text.replace("sat", "lay") for prompt, text in PAIRS}
  complete = lambda rows: [answers[tokens.decode(row)] for row in rows]
  asked = ask(tmp_path, *({"prompt": p, "completion": c} for p, c in PAIRS))
  for batch in (1, 2, 8):
    values, intervals = completions.score(asked, complete, batch, 20)
    expected = metrics.bleu([answers[p] for p, _ in PAIRS], [c for _, c in PAIRS])
    assert values == {**expected, "exact": pytest.approx(2 / 3), "prompts": 3}
    low, high = intervals["bleu"]
    assert low <= values["bleu"] <= high


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 1: is not"),
    ({"prompt": "a"}, "line 1: is not"),
    ({"prompt": "a", "completion": 3}, "are texts"),
    ({"prompt": "a" * 24, "completion": "b"}, "leave no room in the context of 24"),
    ("", "has no prompts"),
  ],
)
def test_bad_lines_are_refused(tmp_path, line, message):
  with pytest.raises(UserError, match=message):
    ask(tmp_path, line)


def test_prompts_begin_with_the_token_that_begins_a_text(tmp_path):
  ((row, wanted),) = ask(tmp_path, {"prompt": "ab", "completion": "c"})
  np.testing.assert_array_equal(row, [256, 97, 98])
  assert wanted == "c"
