"""Near-duplicate documents, shared passages, and mixtures of corpora."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bigmodel import data as room
from bigmodel.data import corpus, duplicates, pipeline
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train import evaluate

WORDS = [f"word{i}" for i in range(3000)]


def text(seed, count=200):
  return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def shingles(document):
  data = " ".join(document.lower().split())
  return {data[i : i + duplicates.SHINGLE] for i in range(len(data) - duplicates.SHINGLE + 1)}


def test_signatures_estimate_the_jaccard_index():
  words = text(0).split()
  for changed in (2, 5, 20):
    other = list(words)
    for at in range(0, len(words), len(words) // changed):
      other[at] = "changed"
    one, two = " ".join(words), " ".join(other)
    true = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
    found = np.mean(duplicates.signature(one) == duplicates.signature(two))
    assert found == pytest.approx(true, abs=0.15)
  assert np.mean(duplicates.signature(text(1)) == duplicates.signature(text(2))) < 0.05


def test_near_duplicates_are_detected_and_others_are_not():
  near = duplicates.NearDuplicates(0.7)
  assert all(near.add(text(seed)) for seed in range(100))
  again = [text(seed).replace("word7 ", "WORD8  ") for seed in range(100)]
  assert not any(near.add(one) for one in again)
  assert all(near.add(text(seed)) for seed in range(200, 300))
  assert near.add("") in (True, False)


def test_a_copy_of_any_held_out_document_is_detected():
  near = duplicates.NearDuplicates(0.5)
  changed = lambda stop: " ".join("other" if i % 8 == 0 and i < stop else w for i, w in enumerate(text(0).split()))
  one, middle, far = changed(0), changed(96), changed(192)
  for held in (one, middle):
    near.remember(duplicates.signature(held))
  alike = lambda a, b: np.mean(duplicates.signature(a) == duplicates.signature(b))
  assert alike(one, far) < 0.5 < alike(middle, far)
  assert not near.add(far)


def test_a_shared_passage_is_found_at_any_position():
  passages = duplicates.Passages()
  for seed in range(20):
    passages.add(text(seed))
  assert not any(passages.shared(text(seed)) for seed in range(100, 200))
  found = [passages.shared(text(300 + seed) + " " + text(seed)[333:640] + " " + text(400)) for seed in range(20)]
  assert all(found)
  assert not passages.shared("short")


def corpus_of(folder, documents, **changes):
  folder.mkdir(exist_ok=True)
  for i, document in enumerate(documents):
    (folder / f"{i:03d}.txt").write_text(document)
  config = default_config()
  config.data.update(name="text_files", path=str(folder), heldout_fraction=0.2, context=16)
  config.data.update(**changes)
  return config


def test_copies_and_leaks_are_counted_and_dropped(tmp_path):
  documents = [text(seed) for seed in range(30)]
  whole = corpus.prepare(corpus_of(tmp_path / "a", documents))
  copies = [document + " and more" for document in documents]
  leaks = [text(50) + " " + documents[i] + " " + text(60 + i, 600) for i in range(30)]
  config = corpus_of(tmp_path / "a", documents + copies, near_duplicates=0.7)
  room.check(config)
  distinct = corpus.prepare(config)
  train, held = (distinct.card["splits"][split]["documents"] for split in ("train", "validation"))
  assert train + held + distinct.card["steps"]["near_duplicates dropped"] == 60
  assert train + held >= 30
  assert distinct.card["steps"]["near_duplicates dropped"] >= 60 - 30 - held
  found = corpus.prepare(corpus_of(tmp_path / "b", documents + leaks, decontaminate="report"))
  dropped = corpus.prepare(corpus_of(tmp_path / "b", documents + leaks, decontaminate="drop"))
  leaked = found.card["steps"]["contaminated found"]
  assert leaked > 0
  assert leaked == dropped.card["steps"]["contaminated dropped"]
  assert dropped.card["splits"]["train"]["documents"] == found.card["splits"]["train"]["documents"] - leaked
  assert len({whole.sha256, distinct.sha256, found.sha256, dropped.sha256}) == 4


def test_a_mixture_has_the_shares_of_its_weights_at_every_scale(tmp_path):
  corpus_of(tmp_path / "b", ["b" * 400 + f" {i}" for i in range(300)])
  config = corpus_of(tmp_path / "a", ["a" * 300 + f" {i}" for i in range(60)])
  config.data.mixture = (f"3 path={tmp_path / 'b'}",)
  room.check(config)
  tokens = np.asarray(corpus.prepare(config).tokens["train"])
  for share in (0.25, 0.5, 1.0):
    part = tokens[: int(len(tokens) * share)]
    assert (part == ord("a")).sum() / np.isin(part, [ord("a"), ord("b")]).sum() == pytest.approx(0.25, abs=0.03)
  assert corpus.prepare(config).card["splits"]["validation"]["documents"] > 30  # of both parts
  losses_of_parts(config)
  config.data.update(name="python_source", distributions=("numpy",), heldout=("jax",))
  config.data.mixture = ("1 distributions=('jax',) heldout=('flax',)",)
  with pytest.raises(UserError, match="jax is also trained on"):
    room.check(config)
  for mixture, message in (
    ("path=x", "does not begin with a weight"),
    ("2 context=3", "'context=3'; a part may set name, path"),
  ):
    config.data.mixture = (mixture,)
    with pytest.raises(UserError, match=message):
      room.check(config)


def losses_of_parts(config):
  """If a token costs 1 in one part and 2 in the other, so do the parts' losses, and their mean is the total."""

  def values(params, rows, key):
    return {"loss": np.where(rows[:, 1:] == ord("a"), 1.0, np.where(rows[:, 1:] == ord("b"), 2.0, 0.0))}

  program: Any = SimpleNamespace(values=values)
  rows = pipeline.eval_rows(config, corpus.prepare(config))
  assert list(rows.parts) == ["a", "b"]
  assert (rows.parts["a"] ^ rows.parts["b"]).all()
  found = evaluate.evaluate(program, None, config, rows)
  shares = {name: mask.mean() for name, mask in rows.parts.items()}
  assert found.metrics["loss_a"] == pytest.approx(1, abs=0.05)
  assert found.metrics["loss_b"] == pytest.approx(2, abs=0.05)
  assert sum(shares[n] * found.metrics[f"loss_{n}"] for n in shares) == pytest.approx(found.loss, rel=1e-9)
  low, high = found.intervals["loss_a"]
  assert low <= found.metrics["loss_a"] <= high


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
  config = corpus_of(tmp_path / "a", [text(i) for i in range(10)])
  (tmp_path / "a" / "bad.txt").write_bytes(b"caf\xe9 " * 100)
  with pytest.raises(UserError, match=r"bad.txt: not UTF-8.*b'\\xe9'"):
    corpus.prepare(config)
