"""Multiple choice: likelihoods count the choices only, and errors name the line of an invalid question."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.data.tokenizer import bytes_tokenizer, from_text, ids_tokenizer
from bigmodel.errors import UserError
from bigmodel.tasks import choices

CONTEXT = 24


def ask(tmp_path, *lines, tokens=None, skip_long=False):
  path = tmp_path / "questions.jsonl"
  written = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
  path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in written))
  return choices.read(str(path), tokens or bytes_tokenizer(), CONTEXT, skip_long)


def losses(rows):
  """Returns losses of a model in which a byte costs its place in the alphabet; targets are rows[:, 1:]."""
  return np.asarray(rows)[:, 1:].astype(float) - ord("a")


def score(questions):
  return choices.score(questions, losses, CONTEXT, batch=4)


def test_the_likeliest_choice_in_total_and_per_byte(tmp_path):
  questions = ask(
    tmp_path,
    {"question": "zzz", "choices": ["b", "ab", "aaaa"], "answer": 2},  # 1, 1 and 0 in all
    {"question": "q", "choices": ["c", "bbb"], "answer": 1},  # 2 and 3 in all; 2 and 1 per byte
  )
  found = score(questions)
  assert found["questions"] == 2
  assert found["accuracy"] == 0.5
  assert found["accuracy_per_byte"] == 1.0
  assert found["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("blank", [" ", "  ", "\n", "\t", "\u3000"])
def test_blanks_before_a_choice_count_wherever_they_are_written(tmp_path, blank, caplog):
  before = ask(tmp_path, {"question": "count", "choices": [blank + "bb", blank + "c"], "answer": 0}).questions
  assert not caplog.records
  after = ask(tmp_path, {"question": "count" + blank, "choices": ["bb", "c"], "answer": 0}).questions
  for one, other in zip(before, after, strict=True):
    np.testing.assert_array_equal(np.concatenate(one.rows), np.concatenate(other.rows))
    assert (one.begins, one.bytes) == (other.begins, other.bytes)
    assert one.bytes == [len((blank + choice).encode()) for choice in ("bb", "c")]
  assert "1 of 1 questions: the blanks at the end" in caplog.text


def test_a_token_across_the_boundary_is_scored_for_every_choice(tmp_path, caplog):
  def encode_and_count(text):  # "tb" is a token
    parts = [part for part in text.replace("tb", "T")]
    return np.array([ord(part) for part in parts]), np.array([1 + (part == "T") for part in parts])

  tokens = dataclasses.replace(
    bytes_tokenizer(), encode=lambda text: encode_and_count(text)[0], encode_and_count=encode_and_count
  )
  (question,) = ask(tmp_path, {"question": "cat", "choices": ["bb", "c"], "answer": 0}, tokens=tokens).questions
  assert [bytes(row[begin:].tolist()) for row, begin in zip(question.rows, question.begins, strict=True)] == [
    b"Tb",
    b"tc",
  ]
  assert question.bytes == [3, 2]
  assert "spans the end" in caplog.text


def test_imported_tokenizers_that_begin_each_text_with_a_blank(tmp_path):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  words = ["<s>", "</s>", "\u2581", "\u2581count", "\u2581bright", "\u2581quick", "bright", "quick"]
  bpe = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="\u2581"))
  bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
  bpe.decoder = decoders.Metaspace()
  tokens = from_text(bpe.to_str(), begin=0, end=1)
  texts = [("count", [" bright", " quick"]), ("count ", ["bright", "quick"])]
  found = [
    ask(tmp_path, {"question": question, "choices": options, "answer": 0}, tokens=tokens).questions[0]
    for question, options in texts
  ]
  for question in found:
    assert [row.tolist() for row in question.rows] == [[0, 3, 4], [0, 3, 5]]
    assert question.begins == [2, 2]
    assert question.bytes == [7, 6]


def test_equal_choices_are_right_together(tmp_path, caplog):
  found = score(ask(tmp_path, {"question": "q", "choices": [" b", " c", " b"], "answer": 2}))
  assert found["accuracy"] == 1
  assert found["chance"] == pytest.approx(2 / 3)
  assert "equal choices" in caplog.text


@pytest.mark.parametrize(
  ("answer", "index", "note"),
  [
    (1, 1, ""),
    (1.0, 1, "written as a float"),
    ("B", 1, "a letter, of which A is the first choice"),
    ("dog", 1, "the answer is a text"),
    (" dog", 1, "the answer is a text"),
  ],
)
def test_answers(tmp_path, answer, index, note, caplog):
  (question,) = ask(tmp_path, {"question": "q", "choices": [" cat", " dog"], "answer": answer}).questions
  assert question.answers == {index}
  assert note in caplog.text
  assert bool(note) == bool(caplog.records)


def test_a_number_may_be_the_text_of_a_choice(tmp_path):
  for answer, index in (("4", 1), ("1", 1), (" 12", 2)):
    of_line = {"question": "q", "choices": ["5", "1" if answer == "1" else "4", "12"], "answer": answer}
    (question,) = ask(tmp_path, of_line).questions
    assert question.answers == {index}


def test_what_is_read(tmp_path, caplog):
  lines = [{"question": f"a\u2028b\x85 {i}", "choices": [" c", " d"], "answer": 1} for i in range(10)]
  whole = "\r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
  assert len(ask(tmp_path, b"\xef\xbb\xbf" + whole.encode()).questions) == 10
  assert "no answer is 0" in caplog.text
  caplog.clear()
  ask(tmp_path, {"question": "count", "choices": ["bright", "quick"], "answer": 0})
  assert "no blank between question and choice, as in 'countbright'" in caplog.text


def test_long_questions_are_skipped_and_counted(tmp_path):
  short, long = ({"question": "a" * n, "choices": [" b", " c"], "answer": 0} for n in (CONTEXT - 2, CONTEXT - 1))
  found = ask(tmp_path, short, long, short, skip_long=True)
  assert (len(found.questions), found.skipped, score(found)["skipped"]) == (2, 1, 1)
  with pytest.raises(UserError, match="line 2: 25 tokens are more than the context of 24; see --skip-long"):
    ask(tmp_path, short, long)
  with pytest.raises(UserError, match="all 1 questions are longer than 24"):
    ask(tmp_path, long, skip_long=True)


GOOD = {"question": "a", "choices": ["b", "c"], "answer": 0}


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 2: not JSON"),
    (b'{"question": "caf\xe9"}', "line 2: not UTF-8"),
    ("[1, 2]", "line 2: not a JSON object"),
    (GOOD | {"choices": ["b"]}, r"line 2: choices are \[\"b\"\]; needs a list of at least two"),
    (GOOD | {"choices": "bc"}, r"line 2: choices are \"bc\"; needs a list"),
    (GOOD | {"choices": {"text": ["b", "c"], "label": ["A", "B"]}}, "line 2: choices are an object with text, label"),
    (GOOD | {"choices": ["b", 3]}, r"line 2: the field 'choices\[1\]' is not a text but 3"),
    (GOOD | {"choices": ["b", ""]}, "line 2: choice 1 is empty"),
    (GOOD | {"choices": ["b", " "]}, "line 2: choice 1 is empty"),
    (GOOD | {"question": None}, "line 2: the field 'question' is not a text but null"),
    ({"ctx": "a", "endings": []}, "line 2: no field 'question'; it has ctx, endings"),
    *(
      (GOOD | {"answer": answer}, f"line 2: answer {re.escape(json.dumps(answer))} is not an index of 2 choices")
      for answer in (2, -1, True, False, None, 0.5, "0", "1", "C", "a", [0], float("nan"), 10**30)
    ),
    (GOOD | {"choices": ["B", "A"], "answer": "A"}, "is a choice's text and the letter of another"),
    (
      GOOD | {"choices": ["2", "4", "1", "3"], "answer": "1"},
      "and, as a number, the index of another",
    ),
    ({"question": "a" * 30, "choices": ["b", "c"], "answer": 0}, "31 tokens are more than the context of 24"),
  ],
)
def test_invalid_questions_are_refused_with_their_line(tmp_path, line, message):
  with pytest.raises(UserError, match=message) as error:
    ask(tmp_path, {"question": "a", "choices": ["b", "c"], "answer": 1}, line)
  assert "\n" not in str(error.value)


def test_ids_that_join_are_refused(tmp_path):
  tokens = ids_tokenizer(300)
  (question,) = ask(tmp_path, {"question": "12 15 ", "choices": ["7 8", "9"], "answer": 0}, tokens=tokens).questions
  assert [row.tolist()[question.begins[0] :] for row in question.rows] == [[7, 8], [9]]
  with pytest.raises(UserError, match="join; write a blank"):
    ask(tmp_path, {"question": "12 15", "choices": ["7 8", "9"], "answer": 0}, tokens=tokens)


ODD = (
  None,
  True,
  0,
  1,
  4,
  -1,
  1.0,
  0.5,
  float("inf"),
  "",
  " ",
  "B",
  "\ud800",
  "a b ",
  [],
  [1],
  ["b", " c"],
  ["b", "b"],
)
ODD = (*ODD, ["", "b"], [None, "b"], {"text": ["b", "c"]}, {"text": 1}, "a" * 30, ["\ud83d", "c\u2028"])
LINES = st.one_of(
  st.binary(max_size=60),
  st.dictionaries(st.sampled_from(sorted(GOOD)), st.sampled_from(ODD)).map(lambda row: json.dumps(GOOD | row).encode()),
)


@pytest.mark.fuzz
@given(st.lists(LINES, max_size=3), st.booleans())
def test_any_file_gives_scores_or_one_line(tmp_path_factory, lines, skip_long):
  try:
    found = ask(tmp_path_factory.getbasetemp(), *lines, skip_long=skip_long)
  except UserError as error:
    assert len(str(error).splitlines()) == 1  # noqa: PT017
  else:
    assert 0 <= score(found)["accuracy"] <= 1
