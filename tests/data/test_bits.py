"""Bits per byte: all nats over all bytes of the text, for any tokenizer and script."""

import json
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bigmodel import data as room
from bigmodel.data import corpus, pipeline, tokenizer
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train import evaluate

# Accents as one character and as two, capitals, ligatures, characters of several code points; and odd white space.
SCRIPTS = {
  "latin": "Größere Häuser stehen näher am Fluß; die ﬁne Élodie trinkt cafe\u0301 und naïve Tees",
  "cyrillic": "Быстрая коричневая лиса прыгает через ленивую собаку, ёлка стоит у реки",
  "arabic": "الثعلب البنيّ السريع يقفز فوق الكلب الكسول في الصباح الباكر",
  "devanagari": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है हर सुबह",
  "chinese": "敏捷的棕色狐狸 跳过了懒狗。 今天早上 很安静 我们在河边 喝茶",
  "emoji": "🙂 👩‍👩‍👧 🚀🚀 🏳️‍🌈 🎉 👍🏽 🐍 ❤️ ok 🇺🇳",
}
SPECIAL = ["<unk>", "<s>", "</s>"]


def documents():
  rng = np.random.default_rng(0)
  for text in SCRIPTS.values():
    for gap in (" ", "  ", "\n", "\t\r\n "):
      yield from (gap.join(rng.choice(text.split(), 12)) + gap for _ in range(4))


def trained(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, **how):
  tokens = Tokenizer(model)
  for name, part in {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}.items():
    if part is not None:
      setattr(tokens, name, part)
  how = {"special_tokens": SPECIAL, "show_progress": False} | how
  tokens.train_from_iterator([*list(documents())[::2], "hello world"], trainer(**how))
  return tokens


def word_piece():
  """Like BERT's: lower case, without accents, unknown words as one token. It truncates texts, as many files specify."""
  tokens = trained(
    models.WordPiece(unk_token="<unk>"),
    trainers.WordPieceTrainer,
    normalizers.BertNormalizer(),
    pre_tokenizers.BertPreTokenizer(),
    vocab_size=300,
  )
  tokens.enable_truncation(8)
  tokens.enable_padding(length=8)
  return tokens


def unigram():
  """Like T5's and XLM-R's: normalised characters, and words that begin with a symbol for the space before them."""
  forms = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
  return trained(
    models.Unigram(), trainers.UnigramTrainer, forms, pre_tokenizers.Metaspace(), vocab_size=300, unk_token="<unk>"
  )


def byte_fallback():
  """Like Llama 2's: characters that are not in the vocabulary become one token per byte."""
  spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  names = [f"<0x{i:02X}>" for i in range(256)]
  return trained(
    models.BPE(unk_token="<unk>", byte_fallback=True),
    trainers.BpeTrainer,
    spaces,
    special_tokens=[*SPECIAL, *names],
    vocab_size=330,
    limit_alphabet=40,
    initial_alphabet=list("helowrd"),
  )


def byte_level():
  """Like GPT-2's: tokens are sequences of bytes that may end within a character."""
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  return trained(
    models.BPE(),
    trainers.BpeTrainer,
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True),
    decoder=decoders.ByteLevel(),
    vocab_size=400,
    initial_alphabet=alphabet,
  )


GIVEN = {make.__name__: make for make in (word_piece, unigram, byte_fallback, byte_level)}
TEXT_TOKENIZERS = [*(name for name in room.TOKENIZERS if name != "ids"), *GIVEN]  # the tokens of `ids` have no text


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
  """Returns `config_of(kind)`, the config of the documents with a tokenizer of that kind."""
  folder = tmp_path_factory.mktemp("bits")
  (folder / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))

  def make(kind):
    config = default_config()
    config.data.update(name="text_files", path=str(folder / "all.jsonl"), heldout_fraction=0.5, context=8)
    config.data.update(tokenizer=kind, vocab_size=300)
    config.eval.tokens = 10**9
    if kind in GIVEN:
      (folder / kind).mkdir(exist_ok=True)
      config.data.tokenizer = str(folder / kind / "tokenizer.json")
      GIVEN[kind]().save(config.data.tokenizer)
      (folder / kind / "imported.json").write_text(json.dumps({"begin": 1, "end": 2}))
    return config

  return make


@pytest.fixture(scope="module")
def heldout(config_of):
  """Returns the held-out texts in order."""
  data = corpus.prepare(config_of("bytes"))
  tokens = np.asarray(data.tokens["validation"])
  texts = [
    bytes(part[part < 256].astype(np.uint8)).decode() for part in np.split(tokens, data.starts["validation"][1:])
  ]
  assert all(any(set(text.split()) <= set(script.split()) for text in texts) for script in SCRIPTS.values())
  return texts


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_bits_per_byte_are_all_nats_over_all_bytes_of_the_text(kind, config_of, heldout):
  config = config_of(kind)
  data = corpus.prepare(config)
  sizes = [len(text.encode()) for text in heldout]
  assert data.heldout_bytes is not None
  documents_ = np.split(np.asarray(data.heldout_bytes, np.int64), data.starts["validation"][1:])
  assert [part.sum() for part in documents_] == sizes
  assert all(part[-1] == 0 for part in documents_)  # the separator
  assert sum(sizes) == data.card["splits"]["validation"]["bytes"]

  # In windows: the documents that lie in them whole have all their bytes.
  rows = pipeline.eval_rows(config, data)
  assert rows.bytes is not None
  found = np.bincount(rows.clusters.ravel(), rows.bytes.ravel())
  assert found[1:-1].tolist() == sizes[1 : len(found) - 1]

  # In one window of all tokens but the first one, which nothing predicts.
  config.data.context = len(data.tokens["validation"]) - 1
  nats = np.random.default_rng(0).gamma(2.0, size=(1, config.data.context))
  program: Any = SimpleNamespace(values=lambda params, rows, key: {"loss": nats})
  measured = evaluate.evaluate(program, None, config, pipeline.eval_rows(config, data))
  true = nats.sum() / math.log(2) / (sum(sizes) - int(data.heldout_bytes[0]))
  assert measured.bits_per_byte == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_each_token_has_the_bytes_of_its_text(kind, config_of):
  config = config_of(kind)
  if kind not in GIVEN:
    corpus.prepare(config)
  tokens = corpus.tokenizer_of(config)
  for text in [*documents(), "", " ", "\n", "\u200b"]:
    ids, counts = tokens.encode_and_count(text)
    np.testing.assert_array_equal(ids, tokens.encode(text))
    assert ids.shape == counts.shape
    assert counts.sum() == (len(text.encode()) if len(ids) else 0)
    assert (counts >= 0).all()
  # Of words of plain letters the tokens are the text cut up, so each can be told by what it decodes to. One byte more
  # or less is the space, which the token before or after it may have, and the stand-in for it before the first word.
  ids, counts = tokens.encode_and_count("hello world")
  alone = [tokens.decode(np.array([i])).replace("#", "").replace("▁", "").strip() for i in ids]
  assert "".join(alone) == "helloworld"
  assert counts.sum() == 11
  assert (np.abs(np.cumsum(counts) - np.cumsum([len(piece) for piece in alone])) <= 1).all()


def test_shared_and_uncovered_characters_count_once():
  text = "aé🙂 b "
  #   tokens:        a, half of é, é's rest, 🙂 in three, b
  ends = np.array([1, 2, 2, 3, 3, 3, 5])
  assert tokenizer.count_bytes(text, ends).tolist() == [1, 2, 0, 4, 0, 0, 3]
  assert tokenizer.count_bytes(text, np.array([1, 0, 99])).tolist() == [1, 0, 9]  # ends that make no sense


@pytest.mark.parametrize("kind", ["bpe", *GIVEN])
def test_special_tokens_that_a_text_spells_out_are_text(kind):
  text = "a <|separator|> b </s> and <s> c"
  if kind == "bpe":  # which learns tokens such as "separator"
    tokens = tokenizer.from_text(tokenizer.train_bpe([*documents(), text * 100], 400))
  else:
    tokens = tokenizer.from_text(GIVEN[kind]().to_str(), 1, 2)
  ids, counts = tokens.encode_and_count(text)
  assert not {tokens.begin, tokens.separator} & set(ids.tolist())
  np.testing.assert_array_equal(ids, tokens.encode(text))
  assert counts.sum() == len(text)
  if kind in ("bpe", "byte_level"):
    assert tokens.decode(ids) == text
  if kind != "unigram":  # its special tokens are also words of its vocabulary
    without = Tokenizer.from_str(json.dumps(json.loads(tokens.text) | {"added_tokens": []}))
    without.no_truncation()
    without.no_padding()
    for spelled in (text, "hello</s>hello <s>hello"):
      assert tokens.encode(spelled).tolist() == without.encode(spelled, add_special_tokens=False).ids
  plain = Tokenizer.from_str(tokens.text)
  plain.no_truncation()
  plain.no_padding()
  for other in documents():
    assert tokens.encode(other).tolist() == plain.encode(other, add_special_tokens=False).ids


def test_an_end_that_its_file_does_not_mark_as_special_is_text_too():
  file = json.loads(byte_level().to_str())
  for token in file["added_tokens"]:
    token["special"] = False
  tokens = tokenizer.from_text(json.dumps(file), 1, 2)
  assert tokens.decode(tokens.encode("a </s> b")) == "a </s> b"
  with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer that"):
    tokenizer.from_text('{"model": {}}', 1, 2)


def test_bpe_learns_from_long_words_in_linear_time_and_other_texts_give_the_same_tokenizer():
  texts = [*documents(), "x" * 1000 + " " * 1000]
  bpe = Tokenizer(models.BPE())
  pre_tokenizer: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
  decoder: Any = decoders.ByteLevel()
  bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoder
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  special = [tokenizer.SEPARATOR]
  trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
  bpe.train_from_iterator(texts, trainer)
  assert tokenizer.train_bpe(texts, 400) == bpe.to_str()
  bases = np.random.default_rng(0).choice(list("ACGT"), 400_000)
  began = time.process_time()
  trained_ = tokenizer.train_bpe(["".join(bases)], 300)
  assert time.process_time() - began < 10  # a minute without the limit
  assert json.loads(trained_)["pre_tokenizer"] == json.loads(bpe.to_str())["pre_tokenizer"]


def test_bpe_learns_from_the_first_texts_only_where_words_are_long(monkeypatch):
  """All words of such texts differ, so that each takes memory."""
  monkeypatch.setattr(tokenizer, "LONG_WORDS_BYTES", 5_000)
  long, other = "".join(np.random.default_rng(0).choice(list("ACGT"), 6_000)), "xyz " * 2_000
  assert tokenizer.train_bpe([long, other], 300) == tokenizer.train_bpe([long], 300)
  assert tokenizer.train_bpe([other, other[:-4] + " new words" * 9], 300) != tokenizer.train_bpe([other], 300)
