"""Each field of a config.json is computed, at the only supported value, without effect, or refused by name."""

import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bigmodel import study
from bigmodel.errors import UserError
from bigmodel.models.imported import huggingface, huggingface_export
from bigmodel.models.layers.attention import Rotary

LLAMA = {
  "model_type": "llama",
  "vocab_size": 32,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
ENCODER = {
  name: LLAMA[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
}
CONFIGS = {
  "gpt2": GPT2,
  "llama": LLAMA,
  "mistral": LLAMA | {"model_type": "mistral", "num_key_value_heads": 1},
  "mixtral": LLAMA | {"model_type": "mixtral", "num_key_value_heads": 1},
  "bert": ENCODER | {"model_type": "bert", "vocab_size": 32},
  "vit": ENCODER | {"model_type": "vit", "image_size": 32},
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


REFUSED = [
  ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true changes what the model computes; only false"),
  ("gpt2", {"activation_function": "quick_gelu"}, 'activation_function = "quick_gelu" is not one of gelu_new'),
  ("gpt2", {"activation_function": "silu"}, 'activation_function = "silu" is not one of'),
  ("gpt2", {"n_head": 3}, "n_head = 3 does not divide n_embd = 16"),
  ("gpt2", {"n_embd": "16"}, 'n_embd = "16" is not a whole number'),
  ("gpt2", {"n_layer": -1}, "n_layer = -1 is not a whole number from 1"),
  ("gpt2", {"n_layer": 10**30}, "n_layer = 1000000000000000000000000000000 is not a whole number from 1 to"),
  ("gpt2", {"layer_norm_epsilon": math.inf}, "layer_norm_epsilon = Infinity is not a positive number"),
  ("gpt2", {"layer_norm_epsilon": 10**400}, r"layer_norm_epsilon = 10{39}\.\.\. is not a positive number"),
  ("llama", {"rope_theta": 10**400}, r"rope_theta = 10+\.\.\. is not a positive number from 1e-30 to 1e\+30"),
  ("llama", {"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor = 10+.* is not a positive number"),
  ("llama", {"rms_norm_eps": True}, "rms_norm_eps = true is not a positive number"),
  ("gpt2", {"scale_attn_weights": "no"}, 'scale_attn_weights = "no" is not true or false'),
  ("gpt2", {"attention_window": 256}, "attention_window = 256 is unknown for the type gpt2"),
  ("llama", {"attention_bias": True}, "attention_bias = true changes"),
  ("llama", {"mlp_bias": True}, "mlp_bias = true changes"),
  ("llama", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not one of silu, swish, relu'),
  ("llama", {"logit_scale": 0.0625}, "logit_scale = 0.0625 changes"),
  ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 changes"),
  ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
  ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 'scaled rotary positions of the kind "yarn" are not'),
  ("llama", {"rope_scaling": {"type": ["linear"]}}, "of the kind"),
  ("llama", {"rope_scaling": "linear"}, 'rope_scaling = "linear" is not an object'),
  ("llama", {"rope_scaling": {"type": "linear"}}, "factor = null is not a positive number"),
  ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 3}}, "mscale = 3 is unknown for the scaling"),
  ("llama", {"rope_scaling": {"factor": 8}}, "factor = 8 is unknown for the scaling 'default' .*name the scaling"),
  ("llama", {"rope_scaling": {"rope_type": "default", "attention_factor": 2}}, "attention_factor = 2 is unknown"),
  ("llama", {"rope_scaling": {"rope_type": "linear", "type": "llama3"}}, 'rope_type "linear" and the type "llama3"'),
  ("llama", {"scale_by_token": True}, "scale_by_token = true is unknown for the type llama"),
  ("llama", {"num_experts_per_token": 2}, "num_experts_per_token = 2 is unknown"),
  ("llama", {"_attn_scale": 3}, "_attn_scale = 3 is unknown"),
  ("llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor = 1 is not more than low_freq"),
  ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 10000.0, and 500000.0 among"),
  ("llama", {"rope_parameters": {"full": {"rope_theta": 1e4}}}, "rotary positions that differ between layers"),
  ("llama", {"layer_types": ["linear_attention"] * 2}, "layer_types = .* is not a list of full_attention"),
  ("llama", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is missing"),
  ("llama", {"num_attention_heads": 2, "num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide"),
  ("llama", {"head_dim": 7}, "heads of the odd size 7"),
  ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Yarn"}}, "auto_map = .*the model comes with code"),
  ("llama", {"attention_biass": False}, "attention_biass = false is unknown .*did you mean 'attention_bias'"),
  ("llama", {"_quantize": "x"}, "_quantize"),
  ("mixtral", {"num_local_experts": 1}, "num_local_experts = 1 is less than 2"),
  ("bert", {"position_embedding_type": "relative_key"}, 'embedding_type = "relative_key" changes .*"absolute"'),
  ("bert", {"is_decoder": True}, "is_decoder = true changes"),
  ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
  ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings = false changes"),
  ("vit", {"qkv_bias": False}, "qkv_bias = false changes"),
  ("vit", {"patch_size": [16, 8]}, r"patch_size = \[16, 8\] is not a whole number"),
  ("vit", {"model_type": "vitt"}, "no models of type 'vitt'.*did you mean 'vit'"),
  ("vit", {"model_type": None}, "no models of type None"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_fields_that_change_the_computation_are_refused_by_name_and_value(kind, changes, message):
  with pytest.raises(UserError, match=message) as raised:
    huggingface.fields_of(CONFIGS[kind] | changes)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_fields_without_effect_and_fields_at_their_defaults_are_read_over(kind):
  plain = huggingface.fields_of(CONFIGS[kind])
  harmless = {
    "_name_or_path": "x/y",
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "transformers_version": "4.40",
    "unsloth_version": "2024.9",
    "use_cache": False,
    "attention_dropout": 0.1,
    "resid_pdrop": 0.2,
    "hidden_dropout_prob": 0.2,
    "pad_token_id": 3,
    "decoder_start_token_id": 3,
    "_commit_hash": "x",
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "_attn_implementation": "eager",
    "auto_map": {"AutoTokenizer": "x.Y"},
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "some_new_field": None,
    "architectures": ["Whatever"],
  }
  assert huggingface.fields_of(CONFIGS[kind] | harmless) == plain


def test_missing_fields_are_named():
  for kind, given in CONFIGS.items():
    for name in given.keys() & {"vocab_size", "hidden_size", "n_embd"}:
      with pytest.raises(UserError, match=f"config.json has no '{name}'"):
        huggingface.fields_of({field: value for field, value in given.items() if field != name})
    with pytest.raises(UserError, match="has no model_type; it names one of gpt2, llama"):
      huggingface.fields_of({field: value for field, value in CONFIGS[kind].items() if field != "model_type"})


def test_positions_are_read_and_written_again():
  for scaling, expected in (
    (None, {}),
    ({"rope_type": "default"}, {}),
    ({"type": "linear", "factor": 2.0}, {"rotary_factor": 2.0}),
    (LLAMA3, {"rotary_factor": 8.0, "rotary_context": 8192, "rotary_low": 1.0, "rotary_high": 4.0}),
    (LLAMA3 | {"type": "llama3", "rope_theta": 10_000.0}, {"rotary_factor": 8.0, "rotary_context": 8192}),
  ):
    for name in ("rope_scaling", "rope_parameters"):
      fields = dict(huggingface.fields_of(LLAMA | {name: scaling}).fields)
      rotary = {field: value for field, value in fields.items() if field.startswith("rotary_")}
      assert rotary.items() >= expected.items()
      config = study.default_config()
      config.model.update(fields)
      config.data.context = 64
      back = huggingface.fields_of(json.loads(json.dumps(huggingface.config_of("llama", config))))
      assert dict(back.fields) == fields


def test_frequencies_of_llama_3_1_follow_the_published_rule():
  """Of the release of Llama 3.1 (`apply_scaling` of its reference code): base 500,000, heads of size 128, 8 x 8,192."""
  plain = Rotary(500_000.0).frequencies(128)
  scaled = Rotary(500_000.0, 8.0, 8192, 1.0, 4.0).frequencies(128)
  for old, new in zip(plain, scaled, strict=True):
    wavelength = 2 * math.pi / old
    if wavelength < 8192 / 4:
      expected = old
    elif wavelength > 8192:
      expected = old / 8
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      expected = (1 - smooth) * old / 8 + smooth * old
    assert new == pytest.approx(expected, rel=1e-12)
  kept, divided = int(np.sum(scaled == plain)), int(np.sum(np.isclose(scaled, plain / 8, rtol=1e-12)))
  assert (kept, divided) == (29, 29)  # of 64 pairs
  np.testing.assert_allclose(Rotary(1e4, 4.0).frequencies(8), Rotary(1e4).frequencies(8) / 4)


def test_contexts_lie_within_windows_and_say_so():
  for changes, context, limit in (
    ({"sliding_window": 64}, 64, 64),
    ({"sliding_window": None}, 64, None),
    ({"sliding_window": 16}, 16, 16),
    ({}, 64, 4096),  # the default of Mistral
    ({"max_position_embeddings": 32_768}, 4096, 4096),
    ({"sliding_window": 16, "layer_types": ["full_attention"] * 2}, 16, 16),  # not read by the classes of Mistral
    ({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, 16, 16),
    ({"sliding_window": 16, "use_sliding_window": False}, 16, 16),  # neither
    ({"sliding_window": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 64, 64),
  ):
    found = huggingface.fields_of(CONFIGS["mistral"] | changes)
    assert (found.context, found.limit) == (context, limit), changes
    assert bool(found.notes) == (context < (changes.get("max_position_embeddings") or 64) or "rope_scaling" in changes)
  for changes in ({"layer_types": ["full_attention"] * 2}, {"use_sliding_window": False}):
    assert huggingface.fields_of(LLAMA | {"sliding_window": 16} | changes).context == 64


def test_defaults_that_differ_between_types():
  fields = {kind: huggingface.fields_of(given).fields for kind, given in CONFIGS.items()}
  assert (fields["llama"]["rotary_base"], fields["mixtral"]["rotary_base"]) == (1e4, 1e6)
  assert (fields["llama"]["epsilon"], fields["mixtral"]["epsilon"], fields["gpt2"]["epsilon"]) == (1e-6, 1e-5, 1e-5)
  assert (fields["llama"]["kv_heads"], fields["mistral"]["kv_heads"]) == (2, 1)
  wide = ENCODER | {"model_type": "mistral", "vocab_size": 32, "hidden_size": 64, "num_attention_heads": 16}
  assert huggingface.fields_of(wide).fields["kv_heads"] == 8


def test_models_that_no_type_fits_are_refused_with_every_field_that_prevents_it():
  config = study.default_config()
  config.model.update(vocab=31, qk_norm=True, norm="layer", activation="relu2")
  config = study.resolve_without_data(config)
  with pytest.raises(UserError) as raised:
    huggingface.config_of("llama", config)
  assert str(raised.value) == (
    "export: a llama cannot have config.model.norm = 'layer' (only 'rms'); config.model.qk_norm = True (only False);"
    " config.model.activation = 'relu2' (only 'reglu' or 'swiglu'); no other type fits, either"
  )
  config.model.update(qk_norm=False, bias=True, positions="learned")
  with pytest.raises(UserError, match="; the model fits --type=gpt2"):
    huggingface.config_of("mixtral", config)
  config.model.update(width=64, head_size=16, heads=2, kv_heads=1)
  with pytest.raises(UserError, match=r"kv_heads = 1 \(only 2\); config.model.head_size = 16 \(only .* = 32\)"):
    huggingface.config_of("gpt2", config)
  with pytest.raises(UserError, match="needs the family decoder, not mlp; no type is for such models"):
    huggingface.config_of("gpt2", study.default_config("mlp"))
  config.model.update(experts=4)
  with pytest.raises(UserError, match=r"config.model.experts = 4 \(only 0\)"):
    huggingface.config_of("gpt2", config)


VALUES = st.sampled_from(
  [None, True, False, 0, 1, -1, 3, 1.5, 2**63, 1e400, math.nan, "x", "relu", "linear", [], {}, [1, {}]]
)
NAMES = sorted({name for config in CONFIGS.values() for name in config} | set(LLAMA3) | {
  *huggingface_export.KINDS["mixtral"].defaults, *huggingface_export.KINDS["gpt2"].defaults, "id2label", "type",
})  # fmt: skip


@pytest.mark.fuzz
@hypothesis.given(
  st.sampled_from(sorted(CONFIGS)),
  st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=3),
  st.none() | st.dictionaries(st.sampled_from(sorted(LLAMA3)), VALUES, max_size=3),
)
def test_any_fields_are_converted_or_refused_in_one_line(kind, changes, scaling):
  given = CONFIGS[kind] | changes | ({"rope_scaling": LLAMA3 | scaling} if scaling is not None else {})
  message = ""
  try:
    found = huggingface.fields_of(given)
  except UserError as error:
    found, message = None, str(error)
  assert found is None or found.context > 0
  assert found is not None or (message and "\n" not in message)
