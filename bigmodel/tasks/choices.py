"""Multiple choice: scores the answer with the highest likelihood after the question, for a JSONL of questions."""

import dataclasses
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bigmodel.config import require
from bigmodel.data.tokenizer import Tokenizer
from bigmodel.errors import UserError
from bigmodel.readers import json_lines

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHAPE = 'lines are {"question": text, "choices": [text, ...], "answer": index from 0}'
FEW = 10  # questions from which on a file without the answer 0 is reported
log = logging.getLogger("bigmodel")


@dataclasses.dataclass(frozen=True)
class Question:
  """Rows of tokens, a question followed by each of its choices. The scored tokens of a row begin at `begins`.

  `bytes` are those of the scored tokens, and `answers` the indexes of the right choice and of those that are equal.
  """

  rows: list[np.ndarray]
  begins: list[int]
  bytes: list[int]
  answers: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Questions:
  """The questions of a file, and the number of those that were skipped because they are longer than the context."""

  questions: list[Question]
  skipped: int = 0


def read(path: str, tokens: Tokenizer, context: int, skip_long: bool = False) -> Questions:
  """Reads lines {"question": text, "choices": [text, ...], "answer": index}; an error names the invalid line.

  What was assumed is logged. `skip_long` skips questions that do not fit in the context, which are refused otherwise.
  """
  path = os.path.expanduser(path)
  require(os.path.isfile(path), f"--choices: no file {path!r}")
  questions, skipped, remarks, last = [], 0, Counter[str](), 0
  for number, row in json_lines.rows(path):
    where = f"--choices: {path}, line {number}"
    question, longest = _question(row, where, tokens, remarks)
    if longest > context:
      require(skip_long, f"{where}: {longest} tokens are more than the context of {context}; see --skip-long")
      skipped += 1
      continue
    questions.append(question)
    last = max(last, *question.answers)
  require(
    bool(questions) or not skipped, f"--choices: {path}: all {skipped} questions are longer than {context} tokens"
  )
  require(bool(questions), f"--choices: {path} has no questions")
  for remark, count in remarks.items():
    log.warning("--choices: %d of %d questions: %s", count, len(questions) + skipped, remark)
  if len(questions) >= FEW and not any(0 in question.answers for question in questions):
    log.warning("--choices: no answer is 0; is the first choice 1 in this file? Indexes begin at 0")
  return Questions(questions, skipped)


def _question(row: Mapping[str, object], where: str, tokens: Tokenizer, remarks: Counter[str]) -> tuple[Question, int]:
  """A question, and the number of tokens of its longest row."""
  question = json_lines.text(json_lines.value(row, "question", where), "question", where)
  choices = _choices(json_lines.value(row, "choices", where), where)
  answer = _index(json_lines.value(row, "answer", where), choices, where, remarks)
  bare = question.rstrip()
  if bare != question:  # tokenizers join a blank with the word after it, so it belongs to the choices
    remarks["the blanks at the end of the question are scored with the choices"] += 1
  elif question[-1:].isascii() and question[-1:].isalnum() and all(c[0].isascii() and c[0].isalnum() for c in choices):
    remarks[f"no blank between question and choice, as in {(question + choices[0])[-40:]!r}"] += 1
  if len({*choices}) < len(choices):
    remarks["equal choices, which are right or wrong together"] += 1
  asked = tokens.encode(bare)
  encoded = [tokens.encode_and_count(question + choice) for choice in choices]
  # All choices are scored from the same token on, so that their likelihoods have the same condition. Where a token
  # spans the end of the question in any row, it is scored.
  shared = min(_common(asked, ids) for ids, _ in encoded)
  if shared < len(asked):
    require(
      tokens.of_text, f"{where}: the last id of the question and the first of a choice join; write a blank between them"
    )
    remarks["a token spans the end of the question and the start of a choice, and is scored"] += 1
  short = [choice for choice, (ids, _) in zip(choices, encoded, strict=True) if len(ids) <= shared]
  require(not short, f"{where}: the choice {json_lines.shortened(short[0] if short else '')} has no token")
  rows = [np.concatenate([[tokens.begin], ids]).astype(np.int32) for ids, _ in encoded]
  sizes = [int(counts[shared:].sum()) or len(c.encode()) for c, (_, counts) in zip(choices, encoded, strict=True)]
  equal = frozenset(i for i, choice in enumerate(choices) if choice == choices[answer])
  return Question(rows, [1 + shared] * len(rows), sizes, equal), max(map(len, rows)) - 1


def _common(first: np.ndarray, second: np.ndarray) -> int:
  """The number of tokens with which both begin."""
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _choices(value: object, where: str) -> list[str]:
  if isinstance(value, dict) and "text" in value:
    raise UserError(f"{where}: choices are an object with {', '.join(map(str, value))} and not a list; {SHAPE}")
  if not isinstance(value, list) or len(value) < 2:
    raise UserError(f"{where}: choices are {json_lines.shortened(value)}; needs a list of at least two; {SHAPE}")
  choices = [json_lines.text(choice, f"choices[{i}]", where) for i, choice in enumerate(value)]
  blank = next((i for i, choice in enumerate(choices) if not choice.strip()), None)
  require(blank is None, f"{where}: choice {blank} is empty")
  return choices


def _index(answer: object, choices: Sequence[str], where: str, remarks: Counter[str]) -> int:
  """The index of the answer, which may be a letter or the text of a choice if that is unambiguous."""
  wrong = f"{where}: answer {json_lines.shortened(answer)} is not an index of {len(choices)} choices, which begin at 0"
  if isinstance(answer, bool):
    raise UserError(wrong)
  if isinstance(answer, str):
    plain = [choice.strip() for choice in choices]
    text = plain.index(answer.strip()) if answer.strip() in plain else None
    letter = LETTERS.find(answer.strip()) if len(answer.strip()) == 1 else -1
    letter_of = letter if 0 <= letter < len(choices) else None
    if text is None and letter_of is None:
      raise UserError(f"{wrong}; a letter from A on or the text of a choice would do as well")
    if text is not None and letter_of is not None and plain[letter_of] != plain[text]:
      raise UserError(f"{wrong}; it is a choice's text and the letter of another choice")
    if text is not None and _is_index_of_another(answer.strip(), plain):
      raise UserError(f"{wrong}; it is a choice's text and, as a number, the index of another choice; write it bare")
    remarks["the answer is a letter, of which A is the first choice" if text is None else "the answer is a text"] += 1
    return letter_of if text is None and letter_of is not None else text or 0
  if isinstance(answer, float) and answer.is_integer():
    remarks["the answer is written as a float"] += 1
    answer = int(answer)
  if not isinstance(answer, int) or not 0 <= answer < len(choices):
    raise UserError(wrong)
  return answer


def _is_index_of_another(answer: str, plain: Sequence[str]) -> bool:
  """Whether an answer that is the text of a choice can also be read as the index of another choice."""
  index = int(answer) if answer.isascii() and answer.isdigit() and len(answer) < 10 else len(plain)
  return index < len(plain) and plain[index] != answer


def score(asked: Questions, losses: Callable[[np.ndarray], np.ndarray], context: int, batch: int) -> dict[str, float]:
  """Returns accuracies by log-likelihood and by log-likelihood per byte; `losses` takes rows [batch, context + 1]."""
  questions = asked.questions
  flat = [(row, begin) for q in questions for row, begin in zip(q.rows, q.begins, strict=True)]
  likelihood = []
  for first in range(0, len(flat), batch):
    part = flat[first : first + batch]
    padded = np.zeros((batch, context + 1), np.int32)
    for i, (row, _) in enumerate(part):
      padded[i, : len(row)] = row  # causal attention: the padding does not change earlier losses
    loss_BxT = losses(padded)
    likelihood += [-float(loss_BxT[i, begin - 1 : len(row) - 1].sum()) for i, (row, begin) in enumerate(part)]
  right, right_per_byte, at = [], [], 0
  for q in questions:
    of_choices = np.array(likelihood[at : at + len(q.rows)])
    at += len(q.rows)
    require(bool(np.isfinite(of_choices).all()), "--choices: the likelihoods of choices are not finite")
    right.append(int(of_choices.argmax()) in q.answers)
    right_per_byte.append(int((of_choices / q.bytes).argmax()) in q.answers)
  n, share = len(questions), float(np.mean(right))
  return {
    "questions": n,
    "skipped": asked.skipped,
    "accuracy": share,
    "accuracy_stderr": math.sqrt(share * (1 - share) / n),
    "accuracy_per_byte": float(np.mean(right_per_byte)),
    "chance": float(np.mean([len(q.answers) / len(q.rows) for q in questions])),
  }
