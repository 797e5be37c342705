"""Completions: scored by sacrebleu for prompts of any length; invalid lines are refused."""

import json

import numpy as np
import pytest

from bigmodel.data.tokenizer import bytes_tokenizer
from bigmodel.errors import UserError
from bigmodel.tasks import completions, metrics

PAIRS = [("the cat", "sat on the mat today"), ("a", "dog ran over there again"), ("the dog", "slept in the warm sun")]


def ask(tmp_path, *lines, skip_long=False):
  path = tmp_path / "prompts.jsonl"
  path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  return completions.read(str(path), bytes_tokenizer(), 24, skip_long)


def test_each_prompt_gets_its_completion_for_every_batch_size(tmp_path):
  tokens = bytes_tokenizer()
  answers = {prompt: text.replace("sat", "lay") for prompt, text in PAIRS}
  complete = lambda rows: [answers[tokens.decode(row)] for row in rows]
  asked = ask(tmp_path, *({"prompt": p, "completion": c} for p, c in PAIRS))
  for batch in (1, 2, 8):
    values, intervals = completions.score(asked, complete, batch, 20)
    expected = metrics.bleu([answers[p] for p, _ in PAIRS], [c for _, c in PAIRS])
    assert values == {**expected, "exact": pytest.approx(2 / 3), "prompts": 3, "skipped": 0}
    low, high = intervals["bleu"]
    assert low <= values["bleu"] <= high


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 1: not JSON"),
    ({"prompt": "a"}, "line 1: no field 'completion'"),
    ({"prompt": "a", "completion": 3}, "line 1: the field 'completion' is not a text but 3"),
    ({"prompt": ["a"], "completion": "b"}, "line 1: the field 'prompt' is not a text"),
    ({"prompt": "a", "completion": " "}, "line 1: the completion is empty"),
    ({"prompt": "a" * 24, "completion": "b"}, "leave no room in the context of 24"),
    ("", "has no prompts"),
  ],
)
def test_bad_lines_are_refused(tmp_path, line, message):
  with pytest.raises(UserError, match=message):
    ask(tmp_path, line)


def test_prompts_begin_with_the_token_that_begins_a_text(tmp_path):
  ((row, wanted),) = ask(tmp_path, {"prompt": "ab", "completion": "c"}).pairs
  np.testing.assert_array_equal(row, [256, 97, 98])
  assert wanted == "c"


def test_blanks_at_the_end_of_a_prompt_begin_the_completion(tmp_path, caplog):
  ((row, wanted),) = ask(tmp_path, {"prompt": "ab ", "completion": "c"}).pairs
  np.testing.assert_array_equal(row, [256, 97, 98])
  assert wanted == " c"
  assert "1 prompts end in blanks" in caplog.text


def test_long_prompts_are_skipped_and_counted(tmp_path):
  short, long = ({"prompt": "a" * n, "completion": "b"} for n in (23, 24))
  found = ask(tmp_path, short, long, short, skip_long=True)
  assert (len(found.pairs), found.skipped) == (2, 1)
  values, _ = completions.score(found, lambda rows: ["b"] * len(rows), 2, 20)
  assert (values["exact"], values["prompts"], values["skipped"]) == (1, 2, 1)
  with pytest.raises(UserError, match=r"line 2: 24 tokens leave no room .*--skip-long"):
    ask(tmp_path, short, long)
  with pytest.raises(UserError, match="none of 1 prompts"):
    ask(tmp_path, long, skip_long=True)
