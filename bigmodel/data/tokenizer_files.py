"""Tokenizer files of Hugging Face: what they say about the tokens that begin and end texts, read and written."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from etils import epath

from bigmodel.config import require
from bigmodel.data import tokenizer
from bigmodel.errors import UserError
from bigmodel.readers import json_document
from bigmodel.readers.json_lines import shortened

if TYPE_CHECKING:
  import tokenizers

TOKENIZER, GENERATION, SPECIAL = "tokenizer.json", "generation_config.json", "tokenizer_config.json"
# Other files about text; they are copied from an imported folder to its run, and from there to an exported folder.
OTHERS = (SPECIAL, GENERATION, "special_tokens_map.json", "chat_template.jinja")
# Files of tokenizers in other formats.
FOREIGN = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
# Settings of generation that `generate` takes as options, or does not have.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams")


class TextEnds(msgspec.Struct, frozen=True):
  """The tokens that begin and end a text of imported weights, where their files name them."""

  begin: int | None
  end: int | None
  stops: tuple[int, ...] = ()  # all tokens at which generation stops
  limit: int | None = None  # the context beyond which the model would compute something else than the original


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """The files about text in a folder of Hugging Face."""

  ends: TextEnds
  files: Mapping[str, str]  # their contents, by name
  notes: tuple[str, ...]


def read(folder: Path, config: Mapping[str, object], vocab: int) -> TextFiles:
  """Reads the tokenizer and the special tokens of a model with `vocab` tokens and this config.json.

  Raises `UserError` for damaged files, and for a tokenizer with tokens that the model does not have.
  """
  files, documents = {}, {"config.json": config}
  for name in (TOKENIZER, *OTHERS):
    if (folder / name).exists():
      content = json_document.content(folder / name)
      if name.endswith(".json"):
        documents[name] = json_document.parse(content, folder / name)
      files[name] = json_document.decoded(content, folder / name)
  tokens = _parsed(files[TOKENIZER], folder / TOKENIZER, vocab) if TOKENIZER in files else None
  given = {name: _given(name, documents) for name in ("bos_token", "eos_token")}
  found = {name: _valid(ids, vocab) or _valid(_by_text(name, documents, tokens), vocab) for name, ids in given.items()}
  notes = [] if tokens else [_no_tokenizer(folder)]
  notes += [
    f"{file}: {name}_id = {shortened(value)} is ignored, as the model has {vocab} tokens"
    for name, ids in given.items()
    for file, value in ids
    if not _valid([(file, value)], vocab)
  ]
  notes += _settings(documents.get(GENERATION, {}))
  begin, end = (next(iter(found[name]), None) for name in ("bos_token", "eos_token"))
  return TextFiles(TextEnds(begin, end, tuple(dict.fromkeys(found["eos_token"]))), files, tuple(dict.fromkeys(notes)))


def _parsed(text: str, path: Path, vocab: int) -> "tokenizers.Tokenizer":
  """The tokenizer of a file. Raises `UserError` if it is invalid or has ids of `vocab` or more."""
  from tokenizers import Tokenizer

  try:
    tokens = Tokenizer.from_str(text)
  except Exception as error:  # the library raises nothing more specific
    raise UserError(f"import: {path} is not a tokenizer: {(str(error).splitlines() or [''])[0][:200]}") from error
  largest = max(tokens.get_vocab().items(), key=lambda item: item[1], default=("", -1))
  require(
    largest[1] < vocab,
    f"import: {path}: the token {largest[0]!r} has the id {largest[1]}, and the model only has {vocab} tokens"
    " (vocab_size): the tokenizer belongs to another model, or tokens were added without resizing the model's tables"
    " (resize_token_embeddings of transformers)",
  )
  return tokens


def _no_tokenizer(folder: Path) -> str:
  found = [name for name in FOREIGN if (folder / name).exists()]
  if not found:
    return f"{folder} has no {TOKENIZER}, so this model cannot read text"
  return (
    f"{folder} has no {TOKENIZER}, so this model cannot read text; make it from {found[0]} with"
    " `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers, then import again"
  )


def _given(name: str, documents: Mapping[str, Mapping[str, object]]) -> list[tuple[str, object]]:
  """The file and the value of each id that files give a special token, those of config.json first."""
  given: list[tuple[str, object]] = []
  for file in ("config.json", GENERATION):
    value = documents.get(file, {}).get(f"{name}_id")
    given += [(file, one) for one in (value if isinstance(value, list) else [value]) if one is not None]
  return given


def _by_text(
  name: str, documents: Mapping[str, Mapping[str, object]], tokens: "tokenizers.Tokenizer | None"
) -> list[tuple[str, object]]:
  """The same for files that give its text."""
  given: list[tuple[str, object]] = []
  for file in (SPECIAL, "special_tokens_map.json"):
    value = documents.get(file, {}).get(name)
    text = value.get("content") if isinstance(value, dict) else value
    found = tokens.token_to_id(text) if tokens and isinstance(text, str) else None
    given += [] if found is None else [(file, found)]
  return given


def _valid(given: list[tuple[str, object]], vocab: int) -> list[int]:
  return [value for _, value in given if type(value) is int and 0 <= value < vocab]


def _settings(generation: Mapping[str, object]) -> list[str]:
  """A note on settings of generation that are not read."""
  found = [f"{name} = {shortened(generation[name])}" for name in SETTINGS if generation.get(name) is not None]
  return [f"not read from {GENERATION}: {', '.join(found)}; pass options to `generate` instead"] if found else []


def copied(folder: epath.Path, ends: TextEnds, context: int) -> TextFiles:
  """The files that were imported into a folder, to export them; those that it lacks are added."""
  files = {name: (folder / name).read_text() for name in (TOKENIZER, *OTHERS) if (folder / name).exists()}
  notes = () if TOKENIZER in files else (f"no tokenizer was written: {folder} has none",)
  return TextFiles(ends, _described(files.get(TOKENIZER, ""), ends, context) | files, notes)


def made(tokens: tokenizer.Tokenizer, context: int) -> TextFiles:
  """The files of a tokenizer of ours."""
  text, ends = exported(tokens), TextEnds(tokens.begin, tokens.separator)
  notes = () if text else ("no tokenizer was written: the texts of this run are token ids",)
  return TextFiles(ends, _described(text, ends, context) | ({TOKENIZER: text} if text else {}), notes)


def _described(text: str, ends: TextEnds, context: int) -> dict[str, str]:
  """The contents of tokenizer_config.json and generation_config.json for a tokenizer with this JSON, or ''."""
  from tokenizers import Tokenizer

  special: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": context,
    "clean_up_tokenization_spaces": False,
  }
  for name, token in (("bos_token", ends.begin), ("eos_token", ends.end)):
    if text and token is not None:
      special[name] = Tokenizer.from_str(text).id_to_token(token)
  files = {GENERATION: ids(ends)} | ({SPECIAL: special} if text else {})
  return {name: json.dumps(content, indent=1, sort_keys=True) + "\n" for name, content in files.items()}


def ids(ends: TextEnds) -> dict[str, object]:
  """The entries about special tokens of config.json and generation_config.json."""
  stops = list(ends.stops) or [ends.end]
  entries = {"bos_token_id": ends.begin, "eos_token_id": stops[0] if len(stops) == 1 else stops}
  return {name: value for name, value in entries.items() if value is not None}


def exported(tokens: tokenizer.Tokenizer) -> str:
  """The tokenizer.json of a tokenizer for bytes or learned byte pairs; '' for token ids.

  It encodes a text to the same ids, after the token that begins texts in training.
  """
  from tokenizers import Tokenizer, processors

  if not tokens.of_text:
    return ""
  bpe = Tokenizer.from_str(tokens.text) if tokens.text else _bytes()
  mark, ident = tokenizer.SEPARATOR, tokens.begin
  bpe.post_processor = processors.TemplateProcessing(  # pyright: ignore
    single=f"{mark} $A", pair=f"{mark} $A {mark} $B", special_tokens=[(mark, ident)]
  )
  return bpe.to_str()


def _bytes() -> "tokenizers.Tokenizer":
  """The tokenizer whose ids are the bytes of the text in UTF-8, and the separator."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  # Bytes are written as printable characters, as in GPT-2: those that are printable as themselves.
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  characters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
  bpe = Tokenizer(models.BPE(characters, []))
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
  bpe.decoder = decoders.ByteLevel()  # pyright: ignore
  bpe.add_special_tokens([AddedToken(tokenizer.SEPARATOR, special=True)])
  return bpe
