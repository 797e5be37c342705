"""Completions: a decoder's continuations of the prompts in a JSONL, compared with references by BLEU and chrF."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigmodel.config import require
from bigmodel.data.tokenizer import Tokenizer
from bigmodel.errors import UserError
from bigmodel.tasks import metrics


def read(path: str, tokens: Tokenizer, context: int) -> list[tuple[np.ndarray, str]]:
  """Reads lines {"prompt": text, "completion": text} as (prompt tokens, reference); an error names the invalid line."""
  require(Path(path).is_file(), f"--completions: no file {path!r}")
  prompts = []
  for number, line in enumerate(_text(path).split("\n"), 1):
    if not line.strip():
      continue
    where = f"--completions: {path}, line {number}"
    try:
      asked = json.loads(line)
      prompt, completion = asked["prompt"], asked["completion"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise UserError(f'{where}: is not {{"prompt": text, "completion": text}}') from error
    require(isinstance(prompt, str) and isinstance(completion, str), f"{where}: prompt and completion are texts")
    row = np.concatenate([[tokens.begin], tokens.encode(prompt)]).astype(np.int32)
    require(len(row) < context + 1, f"{where}: {len(row) - 1} tokens leave no room in the context of {context}")
    prompts.append((row, completion))
  require(bool(prompts), f"--completions: {path} has no prompts")
  return prompts


def _text(path: str) -> str:
  try:
    return Path(path).read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"--completions: {path} is not UTF-8: {error.reason} at byte {error.start}") from error


def score(
  asked: Sequence[tuple[np.ndarray, str]],
  complete: Callable[[np.ndarray], Sequence[str]],
  batch: int,
  resamples: int,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """Returns BLEU, chrF and exact matches of `complete(prompts of equal length)`, and their bootstrap intervals."""
  completions: list[str] = [""] * len(asked)
  for length in sorted({len(row) for row, _ in asked}):  # grouped by length, because each length compiles separately
    places = [i for i, (row, _) in enumerate(asked) if len(row) == length]
    for first in range(0, len(places), batch):
      mine = places[first : first + batch]
      rows = np.stack([asked[i][0] for i in np.resize(mine, batch)])
      for place, text in zip(mine, complete(rows), strict=False):
        completions[place] = text
  references_of_all = [completion for _, completion in asked]

  def metric(times: np.ndarray) -> dict[str, float]:
    drawn = np.repeat(np.arange(len(asked)), times.astype(int))
    texts, references = [completions[i] for i in drawn], [references_of_all[i] for i in drawn]
    same = np.mean([a == b for a, b in zip(texts, references, strict=True)])
    return {**metrics.bleu(texts, references), "exact": float(same)}

  ones = np.ones(len(asked))
  return metric(ones) | {"prompts": len(asked)}, metrics.bootstrap(metric, np.arange(len(asked)), ones, resamples)
