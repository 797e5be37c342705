"""Multiple choice: scores the answer with the highest likelihood after the question, for a JSONL of questions."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigmodel.config import require
from bigmodel.data.tokenizer import Tokenizer
from bigmodel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Question:
  """Rows of tokens, a question followed by each of its choices; a row's choice begins at `begins`."""

  rows: list[np.ndarray]
  begins: list[int]
  bytes: list[int]
  answer: int


def read(path: str, tokens: Tokenizer, context: int) -> list[Question]:
  """Reads lines {"question": text, "choices": [text, ...], "answer": index}; an error names the invalid line."""
  require(Path(path).is_file(), f"--choices: no file {path!r}")
  questions = []
  for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
    if line.strip():
      questions.append(_question(line, f"--choices: {path}, line {number}", tokens, context))
  require(bool(questions), f"--choices: {path} has no questions")
  return questions


def _question(line: str, where: str, tokens: Tokenizer, context: int) -> Question:
  try:
    asked = json.loads(line)
    question, choices, answer = asked["question"], asked["choices"], asked["answer"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise UserError(f'{where}: is not {{"question": text, "choices": [text, ...], "answer": index}}') from error
  texts = isinstance(question, str) and isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
  require(texts and len(choices) > 1, f"{where}: needs a question and at least two choices, all texts")
  require(
    isinstance(answer, int) and 0 <= answer < len(choices),
    f"{where}: answer {answer!r} is not an index of {len(choices)} choices",
  )
  rows, begins = [], []
  for choice in choices:
    # Both are tokenized together, because one token may span the end of the question and the start of the choice.
    row = np.concatenate([[tokens.begin], tokens.encode(question + choice)]).astype(np.int32)
    require(len(row) <= context + 1, f"{where}: {len(row) - 1} tokens are more than the context of {context}")
    rows.append(row)
    begins.append(min(1 + len(tokens.encode(question)), len(row) - 1))
  return Question(rows, begins, [len(choice.encode()) for choice in choices], answer)


def score(
  questions: Sequence[Question], losses: Callable[[np.ndarray], np.ndarray], context: int, batch: int
) -> dict[str, float]:
  """Returns accuracies by log-likelihood and by log-likelihood per byte; `losses` takes rows [batch, context + 1]."""
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
    right.append(int(of_choices.argmax()) == q.answer)
    right_per_byte.append(int((of_choices / q.bytes).argmax()) == q.answer)
  n, share = len(questions), float(np.mean(right))
  return {
    "questions": n,
    "accuracy": share,
    "accuracy_stderr": math.sqrt(share * (1 - share) / n),
    "accuracy_per_byte": float(np.mean(right_per_byte)),
    "chance": float(np.mean([1 / len(q.rows) for q in questions])),
  }
