"""Held-out text is never trained on, from any source: not in another part, format or piece of a document."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bigmodel import data as room
from bigmodel.data import builders, corpus, documents, pipeline, sources, texts
from bigmodel.data.text_sources.python_source import python_files
from bigmodel.errors import UserError
from bigmodel.study import default_config

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
FORMATS = [(suffix, packed) for suffix in documents.TEXT_SUFFIXES for packed in ("", *documents.PACKED_SUFFIXES)]


def text(number, lines=12):
  """Returns a document whose every line contains its name."""
  rng = np.random.default_rng(number)
  return "\n".join(f"doc{number} " + " ".join(f"w{x}" for x in rng.integers(0, 500, 10)) for _ in range(lines))


def write(folder, suffix, packed, texts):
  """Writes the texts as files of this kind, with white space that is specific to the format."""
  folder.mkdir(parents=True)
  padded = [(" " if packed else "") + one + "\n" * (len(suffix) - 2) for one in texts]
  files = {f"{i}{suffix}": one for i, one in enumerate(padded)}
  if suffix in documents.JSON_SUFFIXES:
    files = {f"all{suffix}": "".join(json.dumps({"text": one}) + "\n" for one in padded)}
  for name, content in files.items():
    (folder / f"{name}{packed}").write_bytes(PACK[packed](content.encode()))
  return folder


def names_in(data, split):
  """Returns the names of documents that have any line in a split."""
  words = bytes(np.asarray(data.tokens[split]).clip(0, 255).astype(np.uint8)).decode("utf-8", "replace").split()
  return {word for word in words if word.startswith("doc")}


def config_of(**changes):
  config = default_config()
  config.data.update(name="text_files", context=16, heldout_fraction=0.02)
  config.data.update(**changes)
  return config


def text_files(folder):
  """Writes the same documents in every format, with different held-out fractions, and long files that are split."""
  texts = [text(number) for number in range(80)]
  parts = [write(folder / f"{i}", *kind, texts) for i, kind in enumerate(FORMATS)]
  long = write(folder / "long", ".txt", "", [text(100 + number, lines=3500) for number in range(8)])
  mixture = [f"1 path={part} heldout_fraction={0.05 + 0.015 * i}" for i, part in enumerate(parts[1:])]
  return config_of(path=str(parts[0]), heldout_fraction=0.3, mixture=(*mixture, f"20 path={long} heldout_fraction=0.5"))


def python_source(folder):
  """Whole distributions, and a mixed-in folder with a copy of every file of both."""
  files = python_files(("etils",), ("absl-py",))[::3]
  folder.mkdir()
  for i, file in enumerate(files):
    copy = Path(file.path).read_text(encoding="utf-8")
    (folder / f"{i}.md").write_text(f"\n\n{copy}")
  part = f"1 name=text_files path={folder} heldout_fraction=0.1"
  return config_of(name="python_source", distributions=("etils",), heldout=("absl-py",), mixture=(part,))


def tfds(folder):
  """A dataset whose splits share documents, mixed with files of the same documents."""
  import tensorflow_datasets

  class Sayings(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
      features = tensorflow_datasets.features.FeaturesDict({"text": tensorflow_datasets.features.Text()})
      return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(range(60)), "validation": self._generate_examples(range(40, 80))}

    def _generate_examples(self, numbers):
      yield from ((number, {"text": text(number)}) for number in numbers)

  with builders.quiet():
    Sayings(data_dir=str(folder / "tfds"), file_format="array_record").download_and_prepare()
  part = write(folder / "files", ".jsonl", "", [text(number) for number in range(70)])
  mixture = (f"1 name=text_files path={part} heldout_fraction=0.2",)
  return config_of(name="sayings", dir=str(folder / "tfds"), mixture=mixture)


CASES = {"text_files": text_files, "python_source": python_source, "tfds": tfds}


def test_every_source_of_text_has_a_case():
  assert set(CASES) == set(sources.names("text"))
  assert set(PACK) == {"", *documents.PACKED_SUFFIXES}


@pytest.mark.parametrize("source", CASES)
def test_held_out_documents_are_in_no_training_part(source, tmp_path):
  config = CASES[source](tmp_path / "data")
  room.check(config)
  data = corpus.prepare(config)
  assert data.card["steps"][texts.COPIES] > 0  # there was something to leave out
  identities = {
    split: {documents.identity([one]) for one in documents_of(data, split)} for split in ("train", "validation")
  }
  assert min(map(len, identities.values())) > 3
  assert not identities["train"] & identities["validation"]
  if source != "python_source":
    trained, held = names_in(data, "train"), names_in(data, "validation")
    assert min(len(trained), len(held)) > 3
    assert not trained & held
  if source == "text_files":  # all documents that any fraction holds out, long ones with all their pieces
    shares = {f"doc{n}": documents.heldout_share(documents.identity([text(n)])) for n in range(80)}
    shares |= {f"doc{n}": documents.heldout_share(documents.identity([text(n, 3500)])) for n in range(100, 108)}
    held = {n for n, share in shares.items() if share < (0.3 if int(n[3:]) < 80 else 0.5)}
    assert names_in(data, "validation") == held
    assert names_in(data, "train") == set(shares) - held


def documents_of(data, split):
  tokens, starts = np.asarray(data.tokens[split]), data.starts[split]
  ends = [*starts[1:], len(tokens)]
  return [bytes(tokens[start : end - 1].astype(np.uint8)).decode() for start, end in zip(starts, ends, strict=True)]


def test_a_larger_fraction_holds_out_the_same_documents_and_more(tmp_path):
  part = write(tmp_path / "a", ".jsonl", "", [text(number) for number in range(60)])
  held = []
  for fraction in (0.1, 0.3, 0.7):
    data = corpus.prepare(config_of(path=str(part), heldout_fraction=fraction))
    held.append(names_in(data, "validation"))
    assert not held[-1] & names_in(data, "train")
    assert len(held[-1] | names_in(data, "train")) == 60
  assert held[0] < held[1] < held[2]


def test_pieces_of_a_document_count_as_one_sample(tmp_path):
  """The standard error is over documents, because pieces of a document are not independent samples."""
  folder = write(tmp_path / "a", ".txt", "", [text(number, lines=3000) for number in range(8)])
  config = config_of(path=str(folder), heldout_fraction=0.5)
  config.eval.tokens = 10**9
  data = corpus.prepare(config)
  rows = pipeline.eval_rows(config, data)
  assert isinstance(rows.rows, np.ndarray)
  held = names_in(data, "validation")
  assert 1 < len(held) < data.card["splits"]["validation"]["documents"]  # which counts pieces
  assert len(np.unique(rows.clusters)) == len(held)
  for cluster in np.unique(rows.clusters):
    tokens = rows.rows[:, 1:][rows.clusters == cluster]
    lines = bytes(tokens[tokens < 256].astype(np.uint8)).decode().splitlines()[1:-1]
    assert len({line.split()[0] for line in lines if line.startswith("doc")}) == 1


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", [one for one in documents.TEXT_SUFFIXES if one not in documents.JSON_SUFFIXES])
@pytest.mark.parametrize("lines", [40, 5000])  # less than a piece, and several
def test_the_end_of_a_single_file_is_held_out(tmp_path, suffix, packed, lines):
  content = "".join(f"line {i}\n" for i in range(lines)) if lines == 40 else text(0, lines)
  data = corpus.prepare(config_of(path=str(write(tmp_path / "a", suffix, packed, [content])), heldout_fraction=0.25))
  lines_of = {
    split: bytes(np.asarray(data.tokens[split]).clip(0, 255).astype(np.uint8)).replace(b"\xff", b"").split(b"\n")
    for split in ("train", "validation")
  }
  found = {split: sorted(line.strip().decode() for line in own if line.strip()) for split, own in lines_of.items()}
  wanted = [line.strip() for line in content.splitlines()]
  count = len(found["validation"])
  assert found == {"train": sorted(wanted[:-count]), "validation": sorted(wanted[-count:])}
  assert count == pytest.approx(0.25 * len(wanted), rel=0.01, abs=1)


def test_an_undivisible_part_is_refused_and_the_error_names_a_fraction_that_holds_out_documents(tmp_path):
  long = write(tmp_path / "a", ".txt", "", [text(0, lines=5000)])
  others = write(tmp_path / "others", ".txt", "", [text(i) for i in range(50)])
  with pytest.raises(UserError, match=r"holds one document.*several files, or a \.jsonl"):
    corpus.prepare(config_of(path=str(long), heldout_fraction=0.5, mixture=(f"1 path={others}",)))
  line = write(tmp_path / "line", ".txt", "", ["a single line of words"])
  with pytest.raises(UserError, match=r"one document with too few lines"):
    corpus.prepare(config_of(path=str(line), heldout_fraction=0.5))
  few = write(tmp_path / "b", ".txt", "", [text(i) for i in range(5)])
  shares = sorted(documents.heldout_share(documents.identity([text(i)])) for i in range(5))
  with pytest.raises(UserError, match=f"holds out none of the 5 documents.*above {shares[0]:.3g}"):
    corpus.prepare(config_of(path=str(few), heldout_fraction=shares[0] / 2))
  with pytest.raises(UserError, match=f"holds out all 5 documents.*up to {shares[-1]:.3g}"):
    corpus.prepare(config_of(path=str(few), heldout_fraction=(shares[-1] + 1) / 2))


def test_a_pattern_may_match_files_of_the_same_name_in_several_folders(tmp_path):
  for i, folder in enumerate(("a", "b", "c/d")):
    write(tmp_path / folder / "x", ".txt", "", [text(100 * i + n) for n in range(10)])
  for pattern, count in (("*/*/*.txt", 20), ("**/*.txt", 30), ("**/**/*.txt", 30), ("[ab]/x/?.txt", 20), ("", 30)):
    data = corpus.prepare(config_of(path=str(tmp_path / pattern), heldout_fraction=0.3))
    assert len(names_in(data, "train") | names_in(data, "validation")) == count, pattern


def test_parts_of_a_mixture_have_different_names():
  paths = ("a_3/*", "x/a", "y/a", "*/a", "b/*.txt", "b/**/*.jsonl", "a_2", "*", "?", "../..")
  config = config_of(path="z/a", mixture=tuple(f"1 path={path}" for path in paths))
  names = room.part_names(config.data)
  assert len(set(names)) == len(paths) + 1
  assert names[:4] == ["a", "a_3", "a_2", "a_4"]


def test_prepared_corpora_are_named_by_all_their_inputs(tmp_path, config):
  """Changing any field that affects a corpus changes its name and folder."""
  one = write(tmp_path / "a", ".jsonl", "", [text(number) for number in range(20)])
  other = write(tmp_path / "b", ".jsonl", "", [text(number) for number in range(21)])
  token_files = {name: tokenizer_file(tmp_path / name, end) for name, end in (("t", 0), ("u", 1))}
  mixed = {"mixture": (f"1 path={other}",)}
  source = {"name": "python_source", "distributions": ("etils",), "heldout": ("absl-py",)}
  changes = {
    "name": ({}, source),
    "path": ({"path": str(one)}, {"path": str(other)}),
    "distributions": (source, source | {"distributions": ("jinja2",)}),
    "heldout": (source, source | {"heldout": ("jinja2",)}),
    "heldout_fraction": ({}, {"heldout_fraction": 0.4}),
    "mixture": (mixed, {"mixture": (f"2 path={other}",)}),
    "weight": (mixed, mixed | {"weight": 3.0}),
    "near_duplicates": ({}, {"near_duplicates": 0.5}),
    "decontaminate": ({"decontaminate": "drop"}, {"decontaminate": "report"}),
    "text_key": ({}, {"text_key": "story"}),
    "tokenizer": ({"tokenizer": token_files["t"]}, {"tokenizer": token_files["u"]}),
    "vocab_size": ({"tokenizer": "bpe", "vocab_size": 300}, {"tokenizer": "bpe", "vocab_size": 301}),
  }
  ignored = {*room.FREE, "kind", "sha256", "dir", "train_split", "eval_split"}  # the splits are of TFDS, below
  assert set(changes) == set(room.declared("text")) - ignored
  for name, pair in changes.items():
    folders = []
    for changed in pair:
      data = config_of(path=str(one)).data
      data.update(**changed)
      folders.append(corpus.recipe(data).folder)
    assert folders[0] != folders[1], name


def tokenizer_file(folder, end):
  """Returns the same tokenizer with another end-of-text token."""
  from bigmodel.data import tokenizer

  folder.mkdir()
  (folder / "tokenizer.json").write_text(tokenizer.train_bpe(["a few words"], 260))
  (folder / "imported.json").write_text(json.dumps({"begin": 0, "end": end}))
  return str(folder / "tokenizer.json")


def test_datasets_of_equal_name_and_size_in_two_folders_are_distinguished(tmp_path):
  import tensorflow_datasets

  class Letters(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version("1.0.0")
    letter = ""

    def _info(self):
      features = tensorflow_datasets.features.FeaturesDict({"text": tensorflow_datasets.features.Text()})
      return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split):
      yield from ((i, {"text": f"{split} {i} {self.letter * 200}"}) for i in range(10))

  manifests = set()
  for Letters.letter in "xy":
    folder = str(tmp_path / Letters.letter)
    with builders.quiet():
      Letters(data_dir=folder, file_format="array_record").download_and_prepare()
    for split in ("train", "validation"):
      manifests.add(corpus.recipe(config_of(name="letters", dir=folder, train_split=split).data).sha256)
  assert len(manifests) == 4


def test_the_last_nonempty_line_of_a_single_text_is_held_out(tmp_path):
  """Also with long last lines, blank ends, copies and empty files."""
  paragraphs = [text(i).replace("\n", " ") for i in range(40)]
  content = "\n".join(paragraphs) + "\n"
  corpora = {
    "long lines": [content],
    "blank end": [content + "\n" * 50_000],
    "copies": [content, content + "\n"],
    "beside empty files": ["", content, " \n"],
  }
  for name, files in corpora.items():
    data = corpus.prepare(config_of(path=str(write(tmp_path / name, ".txt", "", files)), heldout_fraction=0.001))
    assert names_in(data, "validation") == {"doc39"}, name
    assert names_in(data, "train") == {f"doc{i}" for i in range(39)}, name
    validation = data.card["splits"]["validation"]
    assert validation["documents"] == 1
    assert validation["bytes"] == len(paragraphs[-1]) + 1  # without the blank end
