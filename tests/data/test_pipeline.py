"""Data: batches are pure functions, scales are nested, epochs are explicit, corpora do not leak."""

import gzip
import json
import lzma

import numpy as np
import pytest

from bigmodel import study
from bigmodel.data import builders, corpus_files, documents, pipeline
from bigmodel.data import corpus as corpora
from bigmodel.data.text_sources.python_source import python_files
from bigmodel.errors import UserError
from bigmodel.readers import plain_text


def rows_of(resolved, steps=10):
  config, corpus = resolved
  return pipeline.train_pipeline(config, corpus, steps)


def texts_of(source):
  return [text for document in documents.documents(source, "text") for _, text in document.pieces]


def test_batch_is_a_function_of_seed_and_step(resolved):
  rows = rows_of(resolved)
  later = rows.batch(7)
  rows.batch(3)
  assert np.array_equal(rows.batch(7), later)
  assert not np.array_equal(rows.batch(3), later)
  config, corpus = resolved
  config.data.seed = 1
  assert not np.array_equal(pipeline.train_pipeline(config, corpus, 10).batch(7), later)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_together_read_the_batch(resolved, hosts):
  rows = rows_of(resolved)
  share = rows.batch_size // hosts
  parts = [rows.batch(5, host * share, (host + 1) * share) for host in range(hosts)]
  assert np.array_equal(np.concatenate(parts), rows.batch(5))


def test_targets_are_the_next_tokens_of_the_corpus(resolved):
  rows, tokens = rows_of(resolved), resolved[1].tokens["train"]
  for row in rows.batch(2):
    places = np.flatnonzero(np.all(np.lib.stride_tricks.sliding_window_view(tokens, len(row)) == row, axis=1))
    assert any(place % (len(row) - 1) == 0 for place in places)


def test_every_epoch_has_every_row_once_in_a_different_order(resolved):
  config, corpus = resolved
  config.data.tokens, config.data.repeat, config.train.batch_size = 32 * 64, True, 8
  rows = pipeline.train_pipeline(config, corpus, 100)
  steps = rows.rows // 8
  epochs = [np.concatenate([rows.batch(e * steps + s) for s in range(steps)]) for e in range(2)]
  whole = {tuple(r) for r in corpus.tokens["train"][np.arange(rows.rows)[:, None] * 32 + np.arange(33)].tolist()}
  for epoch in epochs:
    assert {tuple(r) for r in epoch.tolist()} == whole
  assert not np.array_equal(epochs[0], epochs[1])
  assert rows.epochs_seen(2 * steps) == 2.0


def test_a_batch_may_straddle_epochs(resolved):
  config, corpus = resolved
  config.data.tokens, config.data.repeat, config.train.batch_size = 32 * 10, True, 8
  rows = pipeline.train_pipeline(config, corpus, 100)
  both = np.concatenate([rows.batch(0), rows.batch(1)])
  assert len({tuple(r) for r in both[:10].tolist()}) == len(
    {tuple(r) for r in both[:10].tolist()} | {tuple(r) for r in both[10:].tolist()}
  )


def test_data_scales_nest(resolved):
  config, corpus = resolved
  seen = []
  for tokens in (320, 640, 1280):
    config.data.tokens, config.data.repeat = tokens, True
    rows = pipeline.train_pipeline(config, corpus, 1)
    assert rows.rows == tokens // 32
    seen.append({tuple(r) for s in range(10) for r in rows.batch(s).tolist()})
  assert seen[0] < seen[1] < seen[2]


def test_repeats_need_data_repeat(resolved):
  config, corpus = resolved
  config.data.tokens = 32 * 16
  with pytest.raises(UserError, match=r"data\.repeat=true"):
    pipeline.train_pipeline(config, corpus, 3)
  config.data.repeat = True
  assert pipeline.train_pipeline(config, corpus, 3).epochs_seen(3) == 1.5


def test_tokens_beyond_the_corpus_are_refused(resolved):
  resolved[0].data.tokens = 10**9
  with pytest.raises(UserError, match="beyond the corpus"):
    rows_of(resolved)


def test_context_beyond_the_documents_is_refused(config):
  config.data.context = 10**6
  with pytest.raises(UserError, match=r"data\.context.*longer"):
    corpora.prepare(config)


def test_python_source_holds_out_whole_distributions_without_copies():
  files = python_files(("jinja2", "etils"), ("absl-py",))
  assert {f.name.split("==")[0] for f in files if f.split == "validation"} == {"absl-py"}
  assert {f.name.split("==")[0] for f in files if f.split == "train"} == {"jinja2", "etils"}
  assert len({f.sha256 for f in files}) == len(files)
  assert documents.manifest_sha256(files) == documents.manifest_sha256(files[::-1])
  assert documents.manifest_sha256(files) != documents.manifest_sha256(files[1:])


def test_unknown_distributions_and_empty_paths_are_refused(tmp_path):
  with pytest.raises(UserError, match="pip install no-such-thing"):
    python_files(("no-such-thing",), ("absl-py",))
  with pytest.raises(UserError, match=r"no \.txt, \.md or \.jsonl"):
    corpus_files.find(str(tmp_path / "*.txt"))


def test_text_files_of_every_kind_give_the_same_documents(tmp_path):
  import zstandard

  texts = [f"document {i}\nwith lines\n" for i in range(5)]
  lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
  (tmp_path / "a.jsonl").write_bytes(lines)
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
  (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(lines))
  (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines))
  (tmp_path / "e.txt").write_text(texts[0])
  (tmp_path / "f.md").write_text(texts[1])
  (tmp_path / "ignored.bin").write_bytes(b"\0")
  found = [texts_of(f) for f in corpus_files.find(str(tmp_path)).files]
  assert found == [texts] * 4 + [[texts[0]], [texts[1]]]


def test_long_text_files_are_cut_into_pieces_without_loss(tmp_path):
  text = "".join(f"line {i}\n" for i in range(30_000))
  (tmp_path / "long.txt").write_text(text)
  (source,) = corpus_files.find(str(tmp_path)).files
  parts = texts_of(source)
  assert "".join(parts) == text
  assert len(parts) == -(-len(text) // plain_text.PIECE)


def test_copies_of_a_document_are_dropped_and_never_straddle(config, tmp_path):
  rows = [json.dumps({"text": f"text number {i % 50} " * 20}) for i in range(200)]
  (tmp_path / "a.jsonl").write_text("\n".join(rows))
  config.data.path = str(tmp_path)
  card = corpora.prepare(config).card["splits"]
  assert card["train"]["documents"] + card["validation"]["documents"] == 50


def test_shuffling_on_disk_gives_the_same_corpus(config, tmp_path, monkeypatch):
  def tokens(name):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / name))
    corpus = corpora.prepare(config)
    assert not list(tmp_path.glob("**/bucket*"))
    return corpus.tokens

  whole = tokens("memory")
  monkeypatch.setattr(builders, "SHUFFLED_IN_MEMORY", 10_000)
  monkeypatch.setattr(builders, "BUFFERED", 3_000)
  spilled = tokens("disk")
  for split in ("train", "validation"):
    np.testing.assert_array_equal(whole[split], spilled[split])


def test_bpe_has_fewer_tokens_than_bytes(config):
  config.data.tokenizer, config.data.vocab_size = "bpe", 300
  corpus = corpora.prepare(config)
  assert corpus.vocab <= 300
  for split in ("train", "validation"):
    card = corpus.card["splits"][split]
    assert len(corpus.tokens[split]) < card["bytes"]
  config.data.tokenizer = "bytes"
  raw = corpora.prepare(config)
  assert len(raw.tokens["train"]) == raw.card["splits"]["train"]["bytes"] + raw.card["splits"]["train"]["documents"]


def test_a_prepared_corpus_is_reused_and_a_pinned_one_checked(config):
  first = corpora.prepare(config)
  assert corpora.prepare(config).sha256 == first.sha256
  config.data.sha256 = "0" * 64
  with pytest.raises(UserError, match=r"data\.sha256"):
    corpora.prepare(config)


def test_eval_rows_know_their_documents(resolved):
  config, corpus = resolved
  rows = pipeline.eval_rows(config, corpus)
  starts = corpus.starts["validation"]
  assert isinstance(rows.rows, np.ndarray)
  assert rows.bytes is not None
  flat = rows.rows[:, 1:].ravel()
  separators = np.flatnonzero(flat == 256)
  documents = rows.clusters.ravel()
  assert all(documents[s + 1] == documents[s] + 1 for s in separators if s + 1 < len(flat))
  np.testing.assert_array_equal(rows.bytes.ravel(), flat != 256)
  assert documents.max() < len(starts)


def test_any_tfds_dataset_that_is_prepared_can_be_read(config, tmp_path):
  import tensorflow_datasets as tfds

  class Tales(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict({"story": tfds.features.Text(), "number": np.int64})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
      yield from ((i, {"story": f"{split} tale {i} " * 30, "number": i}) for i in range(40))

  Tales(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
  config.data.name, config.data.dir = "tales", str(tmp_path)
  config.data.text_key, config.data.eval_split = "story", "test"
  corpus = corpora.prepare(config)
  assert corpus.card["splits"]["validation"]["documents"] == 40
  study.resolve(config, corpus)
  for key, message in (("text", "no feature 'text'"), ("number", "'number' is not a text but of type int")):
    config.data.text_key = key
    with pytest.raises(UserError, match=f"config.data.text_key: .*{message}"):
      corpora.prepare(config)
