"""Folders as people download them: what is read, what is noted, and what is refused; exports that can be imported."""

import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from bigmodel import study
from bigmodel.config import flatten
from bigmodel.data import tokenizer, tokenizer_files
from bigmodel.errors import UserError
from bigmodel.files import write_json
from bigmodel.train import configs, interchange, parameters, programs, trained, weights
from bigmodel.train.checkpoint import Checkpoints, to_flat

SIZES = {
  "vocab_size": 260,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
}
LLAMA = {"model_type": "llama", **SIZES, "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id": 256}
GPT2 = {"model_type": "gpt2", "vocab_size": 260, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n"


def tensors_of(config, seed=0):
  """Random tensors of a Llama or GPT-2."""
  rng = np.random.default_rng(seed)
  described = interchange.huggingface.fields_of(config)
  ours = interchange._config(described, 0)
  params = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in parameters.real_shapes(ours).items()}
  return interchange.huggingface.tensors_of(params, config["model_type"], ours)


@pytest.fixture
def folder(tmp_path):
  """A Llama in two shards with a byte tokenizer, in a folder whose name has a blank."""
  folder = tmp_path / "my model"
  folder.mkdir()
  tensors = tensors_of(LLAMA)
  names = sorted(tensors)
  places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
  for shard in set(places.values()):
    save_file({name: tensors[name] for name in names if places[name] == shard}, folder / shard)
  write_json(folder / INDEX, {"metadata": {}, "weight_map": places})
  write_json(folder / "config.json", LLAMA)
  (folder / "tokenizer.json").write_text(tokenizer_files.exported(tokenizer.bytes_tokenizer()))
  return folder


def params_at(workdir):
  store = Checkpoints(workdir / "checkpoints")
  params = store.arrays(0, parameters.PREFIX)
  store.close()
  return params


def edit(folder, **changes):
  config = json.loads((folder / "config.json").read_text())
  write_json(folder / "config.json", config | changes)


def index(folder, **changes):
  content = json.loads((folder / INDEX).read_text())
  content["weight_map"] |= changes
  write_json(folder / INDEX, content)


def whole(folder, seed=1):
  save_file(tensors_of(LLAMA, seed), folder / "model.safetensors")


def add_tensor(folder):
  path = folder / "model-00001-of-00002.safetensors"
  save_file(load_file(path) | {"extra": np.ones(2, np.float32)}, path)


READ = {  # changes that leave the weights the same, with the note that is printed
  "nothing": (lambda f: None, ""),
  "an old whole file": (whole, "not read: model.safetensors, as model.safetensors.index.json does not list it$"),
  "a tensor that is not listed": (add_tensor, "not read: 1 tensor in the shards that .*index.json does not list"),
  "no index": (lambda f: (f / INDEX).unlink(), "has no model.safetensors.index.json, so all of its 2 shards are read"),
  "the original layout beside it": (lambda f: save_file({"tok": np.ones(2)}, f / "consolidated.safetensors"), ""),
  "a byte order mark": (lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode()), ""),
  "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json, so this model cannot read text"),
  "a tokenizer of another format": (
    lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
    r"make it from tokenizer.model with `AutoTokenizer",
  ),
  "settings": (
    lambda f: write_json(f / "generation_config.json", {"temperature": 0.6, "eos_token_id": [5, 999]}),
    r"generation_config.json: eos_token_id = 999 is ignored, as the model has 260 tokens; .*temperature = 0.6; pass",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_the_index_decides_and_notes_say_what_is_not_read(name, folder, tmp_path, inside):
  change, note = READ[name]
  interchange.import_weights(str(folder), tmp_path / "first")
  change(folder)
  code, out, err = inside("import", folder, "--workdir", tmp_path / "a run", "--json")
  assert code == 0, err
  notes = json.loads(out)["notes"]
  assert bool(notes) == bool(note)
  assert re.search(note, "; ".join(notes))
  first, second = params_at(tmp_path / "first"), params_at(tmp_path / "a run")
  assert all(np.array_equal(first[key], second[key]) for key in first)


def remove_weights(folder):
  for file in [*folder.glob("*.safetensors"), folder / INDEX]:
    file.unlink()


def only(name, content=b"x" * 99):
  """Replaces the weights by another file."""

  def change(folder):
    remove_weights(folder)
    (folder / name).write_bytes(content)

  return change


def tokens_beyond_the_table(folder):
  tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokens.add_tokens(["word", "other", "more", "last"])
  tokens.save(str(folder / "tokenizer.json"))


def cut(name):
  return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-8])


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
REFUSED = {
  "a shard is lost": (lambda f: (f / SECOND).unlink(), f"lacks 1 of the 2 files that {INDEX} lists: {SECOND}; repeat"),
  "a shard is lost, no index": (
    lambda f: ((f / SECOND).unlink(), (f / INDEX).unlink()),
    f"lacks shards: {SECOND}; repeat the download",
  ),
  "shards are lost beside a whole file": (
    lambda f: (whole(f), (f / FIRST).unlink(), (f / SECOND).unlink()),
    "or, if model.safetensors is the whole model, delete the index",
  ),
  "an interrupted download": (
    lambda f: ((f / ".cache").mkdir(), (f / SECOND).rename(f / ".cache" / "ab.incomplete")),
    "ab.incomplete is left of an interrupted one",
  ),
  "a tensor is not in its shard": (
    lambda f: index(f, **{"model.norm.weight": FIRST, "lm_head.weight": SECOND}),
    f"safetensors has no tensor '.*', which {INDEX} lists there",
  ),
  "a path in the index": (lambda f: index(f, x="../a.safetensors"), "is not the name of a .*safetensors file"),
  "an index without a map": (lambda f: write_json(f / INDEX, {"weight_map": []}), "has no weight_map"),
  "a truncated shard": (cut(SECOND), f"{SECOND} cannot be read: it ends after .* the download is incomplete"),
  "a pointer as a shard": (lambda f: (f / FIRST).write_bytes(LFS), f"{FIRST} .*it is a Git LFS pointer"),
  "a pointer as the config": (lambda f: (f / "config.json").write_bytes(LFS), "config.json: .*it is a Git LFS pointer"),
  "a pointer as the tokenizer": (
    lambda f: (f / "tokenizer.json").write_bytes(LFS),
    "tokenizer.json: .*it is a Git LFS pointer",
  ),
  "a pointer as the index": (lambda f: (f / INDEX).write_bytes(LFS), f"{INDEX}: .*it is a Git LFS pointer"),
  "a page as the config": (lambda f: (f / "config.json").write_bytes(b"<!doctype html>"), "config.json: .*a web page"),
  "an error as the config": (lambda f: (f / "config.json").write_text('{"error": "gated"}'), 'in its place: "gated"'),
  "no config": (lambda f: (f / "config.json").unlink(), "has no config.json$"),
  "the original layout": (
    lambda f: (only("consolidated.safetensors")(f), (f / "config.json").rename(f / "params.json")),
    "has no config.json; consolidated.safetensors: .*original layout of Mistral and Meta",
  ),
  "only consolidated": (only("consolidated.safetensors"), r"has no \*.safetensors; .*original layout of Mistral"),
  "PyTorch": (only("pytorch_model.bin"), "pytorch_model.bin: a PyTorch file, .*save_pretrained"),
  "PyTorch shards": (only("pytorch_model-00001-of-00002.bin"), "a PyTorch file, .*save_pretrained"),
  "GGUF": (only("m.Q4_K_M.gguf", b"GGUF1234"), "m.Q4_K_M.gguf: a GGUF file of llama.cpp"),
  "TensorFlow": (only("tf_model.h5"), "tf_model.h5: a file of TensorFlow"),
  "several models": (
    lambda f: (only("a.safetensors")(f), (f / "b.safetensors").write_bytes(b"")),
    "has neither model.safetensors nor .* but a.safetensors, b.safetensors",
  ),
  "an adapter": (
    lambda f: write_json(f / "adapter_config.json", {"base_model_name_or_path": "x/y", "peft_type": "LORA"}),
    'holds an adapter .LoRA. for "x/y" and not a whole model; merge it first',
  ),
  "quantised": (
    lambda f: edit(f, quantization_config={"quant_method": "gptq", "bits": 4}),
    r"quantised weights \(gptq\) cannot be imported; use the weights before quantisation",
  ),
  "float8": (
    lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes().replace(b'"F32"', b'"I32"')),
    "has values of type I32, as quantised weights have",
  ),
  "tokens beyond the table": (tokens_beyond_the_table, "the token 'last' has the id 260, and the model only has 260"),
  "no tokenizer but JSON": (lambda f: write_json(f / "tokenizer.json", {"model": 3}), "json is not a tokenizer"),
  "weights that are not finite": (
    lambda f: save_file({k: v * np.nan for k, v in load_file(f / FIRST).items()}, f / FIRST),
    "parameters are not finite",
  ),
  "an unknown field": (lambda f: edit(f, use_rms=False), "use_rms = false is unknown for the type llama"),
  "untied copies": (
    lambda f: edit(f, tie_word_embeddings=True),
    "'lm_head.weight' differs from 'model.embed_tokens.weight', and config.json ties them",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_and_nothing_is_written(name, folder, tmp_path, inside):
  change, message = REFUSED[name]
  change(folder)
  code, out, _ = inside("import", folder, "--workdir", tmp_path / "run", "--json")
  error = json.loads(out)["error"]
  assert code == 2
  assert re.search(message, error), error
  assert not error.startswith("import:")  # the command prints its name in front
  assert "\n" not in error
  assert not (tmp_path / "run").exists()


def test_folders_that_are_missing_or_not_new_are_refused(folder, tmp_path, monkeypatch):
  for source, target, message in (
    ("org/model", tmp_path / "a", "no folder 'org/model'; download a model first, as with `hf download"),
    (str(folder / "config.json"), tmp_path / "a", "config.json is a file; name the folder that holds config.json"),
    (str(folder.parent), tmp_path / "a", f"has no config.json; did you mean {folder}"),
    (str(folder), folder, "holds a run or a model; choose another folder"),
    (str(folder), folder.parent, "is not empty; choose another folder"),
    (str(folder), folder / "config.json", "is a file; name a new or empty folder"),
    (str(folder), folder / "config.json" / "x", r"cannot write here \(.*config.json is a file\)"),
    (str(folder), Path("/proc/x"), r"/proc/x: cannot write here \(No such file"),
  ):
    with pytest.raises(UserError, match=message):
      interchange.import_weights(source, target)
  interchange.import_weights(str(folder), tmp_path / "run")
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  with pytest.raises(UserError, match=r"import: --workdir .*cannot write here \(.* is read-only\)"):
    interchange.import_weights(str(folder), tmp_path / "a")
  with pytest.raises(UserError, match=r"export: --to .*cannot write here \(.* is read-only\)"):
    interchange.export_weights(tmp_path / "run", str(tmp_path / "a"), "llama")


def logits_of(workdir, tokens):
  model = trained.load(str(workdir))
  built = trained.models.build(model.config)
  return np.asarray(jax.jit(built.apply)({"params": model.params}, tokens)[0])


def gpt2_logits(tensors, ids, inverse, scaled):
  """The logits of a GPT-2 of 2 layers and 2 heads, in NumPy."""

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

  def linear(x, name):
    return x @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

  T = len(ids)
  x = tensors["wte.weight"][ids] + tensors["wpe.weight"][:T]
  for i in range(2):
    q, k, v = (
      a.reshape(T, 2, 8).transpose(1, 0, 2)
      for a in np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, -1)
    )
    scores = q @ k.transpose(0, 2, 1) / (8**0.5 if scaled else 1) / (i + 1 if inverse else 1)
    scores = np.where(np.tril(np.ones((T, T))), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    x = x + linear(mixed.transpose(1, 0, 2).reshape(T, 16), f"h.{i}.attn.c_proj")
    hidden = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    x = x + linear(hidden, f"h.{i}.mlp.c_proj")
  return norm(x, "ln_f") @ tensors["wte.weight"].T


@pytest.mark.parametrize(("inverse", "scaled"), [(False, True), (True, True), (False, False), (True, False)])
def test_scales_of_attention_of_gpt2_are_computed(inverse, scaled, tmp_path):
  there = tmp_path / "there"
  there.mkdir()
  write_json(there / "config.json", GPT2 | {"scale_attn_by_inverse_layer_idx": inverse, "scale_attn_weights": scaled})
  tensors = tensors_of(GPT2)
  save_file(tensors, there / "model.safetensors")
  found = interchange.import_weights(str(there), tmp_path / "run", context=12)
  assert any("scale of attention scores" in note for note in found.notes) == (inverse or not scaled)
  tokens = np.random.default_rng(3).integers(0, 260, (1, 12))
  expected = gpt2_logits({k: v.astype(np.float64) for k, v in tensors.items()}, tokens[0], inverse, scaled)
  np.testing.assert_allclose(logits_of(tmp_path / "run", tokens)[0], expected, rtol=1e-4, atol=1e-4)  # float32
  with pytest.raises(UserError, match="--context: 25 is more than the 24 tokens up to which"):
    interchange.import_weights(str(there), tmp_path / "other", context=25)


def test_generation_stops_at_any_end_and_an_export_is_imported_again(folder, tmp_path, inside):
  edit(folder, rope_scaling={"type": "linear", "factor": 2.0}, bos_token_id=7, eos_token_id=[256, 9])
  write_json(folder / "generation_config.json", {"eos_token_id": [256, 11]})
  interchange.import_weights(str(folder), tmp_path / "run")
  model = trained.load(str(tmp_path / "run"), generating=True)
  tokens = trained.tokenizer_of(model)
  assert (tokens.begin, tokens.separator) == (7, 256)
  assert trained.stops_of(model, tokens).tolist() == [256, 9, 11]
  row = np.array([65, 66, 11, 67, 256])
  assert trained._before(row, trained.stops_of(model, tokens)).tolist() == [65, 66]
  assert inside("export", "--workdir", tmp_path / "run", "--to", tmp_path / "out", "--type", "llama")[0] == 0
  assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [256, 11]
  assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [256, 9, 11]
  assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == tokenizer.SEPARATOR
  assert inside("import", tmp_path / "out", "--workdir", tmp_path / "back")[0] == 0
  back = trained.load(str(tmp_path / "back"), generating=True)
  assert back.config == model.config
  assert (
    trained.tokenizer_of(back).encode("ab").tolist() == trained.tokenizer_of(model).encode("ab").tolist() == [97, 98]
  )
  assert trained.stops_of(back, trained.tokenizer_of(back)).tolist() == [256, 9, 11]
  first, second = params_at(tmp_path / "run"), params_at(tmp_path / "back")
  assert all(np.array_equal(first[key], second[key]) for key in first)
  (continuation,) = trained.generate(model, "ab", trained.Sampling(tokens=8, temperature=0.0))
  assert continuation.log_probability < 0
  code, _, err = inside("eval", "--workdir", tmp_path / "run")
  assert code == 2
  assert "imported weights have no data of their own to evaluate on; evaluate them with --choices" in err


@pytest.mark.parametrize("text", ["", "a b\n", "\u00e9\u4e2d\U0001f600\x00\x7f\xad", tokenizer.SEPARATOR[:4]])
def test_the_exported_tokenizer_of_bytes_encodes_to_bytes(text):
  bpe = Tokenizer.from_str(tokenizer_files.exported(tokenizer.bytes_tokenizer()))
  assert bpe.encode(text).ids == [256, *text.encode()]
  assert bpe.decode([256, *text.encode()]) == text


def test_learned_byte_pairs_are_exported_and_token_ids_are_not():
  learned = tokenizer.from_text(tokenizer.train_bpe(["the cat and the hat"] * 9, 300))
  bpe = Tokenizer.from_str(tokenizer_files.exported(learned))
  assert bpe.encode("the hat").ids == [learned.begin, *learned.encode("the hat")]
  made = tokenizer_files.made(tokenizer.ids_tokenizer(9), 32)
  assert "tokenizer.json" not in made.files
  assert made.notes == ("no tokenizer was written: the texts of this run are token ids",)


def test_a_shorter_context_cuts_learned_positions_and_a_longer_one_is_refused(config, tmp_path, caplog):
  there = tmp_path / "there"
  there.mkdir()
  write_json(there / "config.json", GPT2 | {"eos_token_id": 256})
  save_file(tensors_of(GPT2), there / "model.safetensors")
  (there / "tokenizer.json").write_text(tokenizer_files.exported(tokenizer.bytes_tokenizer()))
  interchange.import_weights(str(there), tmp_path / "run")
  imported = configs.read_config(tmp_path / "run")
  config.model.update({name: imported.model[name] for name in imported.model})
  config.data.update(tokenizer=str(tmp_path / "run" / "tokenizer.json"), context=16)
  config.train.init_from = str(tmp_path / "run")
  run, _ = study.single_run(config, tmp_path / "tuned")
  program = programs.program(run.config)
  begun = to_flat(weights.start(run.config, program.init(0), program.optimizer_state).params)
  expected = params_at(tmp_path / "run")
  for name, value in begun.items():
    rows = len(value) if name == "positions" else None
    np.testing.assert_array_equal(value, expected[parameters.PREFIX + name][:rows])
  assert len(begun["positions"]) == 16
  assert not caplog.records
  config.data.context = 32
  with pytest.raises(UserError, match=r"data.context: 32 positions are more than the 24 that the weights of"):
    study.single_run(config, tmp_path / "longer")
  config.data.context = 16
  config.model.epsilon = 0.125
  study.single_run(config, tmp_path / "other")
  assert "config.model.epsilon: 0.125, and the weights of" in caplog.text


def test_weights_with_a_window_are_not_trained_on_longer_contexts(folder, config, tmp_path):
  edit(folder, model_type="mistral", sliding_window=16, num_key_value_heads=2)
  found = interchange.import_weights(str(folder), tmp_path / "run")
  assert found.context == 16
  assert "attention would have a window of 16 tokens" in found.notes[0]
  imported = configs.read_config(tmp_path / "run")
  config.model.update({name: imported.model[name] for name in imported.model})
  config.data.update(tokenizer=str(tmp_path / "run" / "tokenizer.json"), context=32)
  config.train.init_from = str(tmp_path / "run")
  with pytest.raises(UserError, match=r"data.context: 32; the weights of .* are for contexts of up to 16 tokens"):
    study.single_run(config, tmp_path / "tuned")
  assert flatten(imported)["data.context"] == 16
