"""The fields of config.json of Hugging Face's models: computed, restricted to one value, or without effect.

A field that is in none of these lists is refused, because it may change what the model computes. Defaults are those
of the classes GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, BertConfig and ViTConfig of transformers.
"""

import dataclasses
import re
from collections.abc import Mapping

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.readers.json_lines import shortened

LARGEST = 1 << 24  # of sizes
RANGE = 1e-30, 1e30  # of other numbers: float32 holds them and their products

# Fields of any type that do not change what a model computes in evaluation.
HARMLESS = frozenset(
  """
  architectures attn_implementation bad_words_ids begin_suppress_tokens chunk_size_feed_forward diversity_penalty
  do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
  gradient_checkpointing id2label initializer_range label2id language length_penalty license max_length max_seq_len
  max_seq_length min_length model_max_length model_name model_type name_or_path neftune_noise_alpha
  no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
  output_hidden_states output_past output_scores prefix pretraining_tp problem_type remove_invalid_values
  repetition_penalty return_dict return_dict_in_generate suppress_tokens task_specific_params temperature
  tf_legacy_loss tie_last_hidden_states tokenizer_class tokenizer_model_max_length tokenizer_padding_side top_k top_p
  torch_dtype torchscript typical_p use_bfloat16 use_cache use_flash_attention use_flash_attention_2 vocab_file
  """.split()  # noqa: SIM905
)
# The same of fields with such names: dropout, special tokens, and notes of tools. Other names with a leading underscore
# or with "token" in them may belong to a change of the computation, such as scale_by_token.
HARMLESS_NAMES = re.compile(
  r"summary_.*|unsloth_.*|.*_dropout(_prob)?|.*_pdrop|.*_layerdrop"
  r"|_?(transformers|diffusers|unsloth|torch|pytorch|safetensors|tokenizers?|peft|trl|model|mlx|library)_version"
  r"|(bos|eos|pad|unk|sep|cls|mask|decoder_start|forced_bos|forced_eos|image|video|audio|vision|vision_start"
  r"|vision_end|eot|eom|eod|eol|eop|boi|eoi|prefix|middle|suffix|user|assistant|system|additional_special)"
  r"_token(_ids?|s|_index)?|add_(bos|eos)_token"
  r"|_(name_or_path|commit_hash|from_auto|auto_class|num_labels|comment|description|dtype)"
  r"|_output_(attentions|hidden_states)|_flash_attn_2_enabled|_(attn|experts)_implementation(_autoset|_internal)?"
)

# Fields of any type, with the only value that is supported.
FIXED: Mapping[str, object] = {
  "is_encoder_decoder": False,
  "tie_encoder_decoder": False,
  "add_cross_attention": False,
  "cross_attention_hidden_size": None,
  "pruned_heads": {},
  "per_layer_config": None,
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """The fields of one type of models."""

  required: frozenset[str]
  defaults: Mapping[str, object]  # computed, with the values that transformers takes for fields that are absent
  fixed: Mapping[str, object]
  harmless: frozenset[str]


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


_SIZES = _names("hidden_size num_hidden_layers num_attention_heads intermediate_size")
_LLAMA = Kind(
  _SIZES | {"vocab_size"},
  {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "use_sliding_window": None,
    "layer_types": None,
  },
  {
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": False,
    "use_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "qk_norm": False,
    "use_qk_norm": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
  },
  _names("is_decoder max_sequence_length max_window_layers"),
)
_MISTRAL: Mapping[str, object] = {"num_key_value_heads": 8, "max_position_embeddings": 131_072}
KINDS: Mapping[str, Kind] = {
  "gpt2": Kind(
    _names("vocab_size n_embd n_layer n_head"),
    {
      "n_positions": 1024,
      "n_inner": None,
      "activation_function": "gelu_new",
      "layer_norm_epsilon": 1e-5,
      "scale_attn_weights": True,
      "scale_attn_by_inverse_layer_idx": False,
      "tie_word_embeddings": True,
    },
    {},
    # The last only changes rounding: keys are scaled before the product, and the softmax is float32 as it is here.
    _names("n_ctx is_decoder reorder_and_upcast_attn"),
  ),
  "llama": _LLAMA,
  "mistral": dataclasses.replace(_LLAMA, defaults={**_LLAMA.defaults, **_MISTRAL, "sliding_window": 4096}),
  "mixtral": dataclasses.replace(
    _LLAMA,
    defaults={
      **_LLAMA.defaults,
      **_MISTRAL,
      "rms_norm_eps": 1e-5,
      "rope_theta": 1e6,
      "num_local_experts": 8,
      "num_experts_per_tok": 2,
    },
    harmless=_LLAMA.harmless | _names("output_router_logits router_aux_loss_coef router_jitter_noise"),
  ),
  "bert": Kind(
    _SIZES | {"vocab_size"},
    {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2},
    {"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True},
    # Of the first BERT, whose pooler is the one that is imported.
    _names(
      "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type"
    ),
  ),
  "vit": Kind(
    _SIZES,
    {
      "hidden_act": "gelu",
      "layer_norm_eps": 1e-12,
      "image_size": 224,
      "patch_size": 16,
      "num_channels": 3,
    },
    {"qkv_bias": True},
    _names("encoder_stride pooler_output_size pooler_act is_decoder tie_word_embeddings"),
  ),
}


def require_kind(kind: object) -> None:
  """Raises `UserError` for a model type that cannot be converted."""
  if not isinstance(kind, str) or kind not in KINDS:
    near = nearest(kind, KINDS) if isinstance(kind, str) else ""
    raise UserError(f"import: no models of type {kind!r}{near}; known: {', '.join(KINDS)}")


@dataclasses.dataclass(frozen=True)
class Fields:
  """The computed fields of a config.json, which has no others that change the computation."""

  values: Mapping[str, object]
  given: Mapping[str, object] = dataclasses.field(default_factory=dict)  # all entries of the file, without defaults

  @classmethod
  def of(cls, theirs: Mapping[str, object]) -> "Fields":
    """Checks all fields by name. Raises `UserError` for missing, unknown and unsupported ones."""
    if "model_type" not in theirs:
      raise UserError(f"import: config.json has no model_type; it names one of {', '.join(KINDS)}")
    require_kind(theirs["model_type"])
    kind = KINDS[str(theirs["model_type"])]
    missing = sorted(kind.required - theirs.keys())
    if missing:
      raise UserError(f"import: config.json has no {missing[0]!r}{nearest(missing[0], theirs)}")
    fixed = {**FIXED, **kind.fixed}
    for name, value in theirs.items():
      if name in kind.required or name in kind.defaults:
        continue
      if name in fixed:
        _require_only(name, value, fixed[name])
      elif name == "auto_map":
        _require_no_code(value)
      elif not _is_harmless(name, value, kind):
        known = [*kind.required, *kind.defaults, *fixed]
        raise UserError(
          f"import: config.json: {printable(name)} = {shortened(value)} is unknown for the type"
          f" {theirs['model_type']} and may change what the model computes{nearest(name, known)}; if it does not,"
          " delete it there"
        )
    computed = kind.required | kind.defaults.keys()
    return cls({**kind.defaults, **{name: value for name, value in theirs.items() if name in computed}}, theirs)

  def whole(self, name: str, least: int = 1) -> int:
    """A size. Raises `UserError` unless it is a whole number from `least` up."""
    value = self.values[name]
    if type(value) is float and value.is_integer():
      value = int(value)
    if type(value) is not int or not least <= value <= LARGEST:
      raise self.invalid(name, f"a whole number from {least} to {LARGEST}")
    return value

  def optional(self, name: str, default: int) -> int:
    """A size, or the default for null."""
    return default if self.values[name] is None else self.whole(name)

  def number(self, name: str) -> float:
    """A positive number that float32 holds."""
    value, (least, most) = self.values[name], RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
      raise self.invalid(name, f"a positive number from {least:g} to {most:g}")
    return float(value)

  def flag(self, name: str) -> bool:
    """True or false; null is false."""
    value = self.values[name]
    if value is not None and not isinstance(value, bool):
      raise self.invalid(name, "true or false")
    return bool(value)

  def choice(self, name: str, choices: Mapping[str, str]) -> str:
    """What the table has for the name that this field holds."""
    value = self.values[name]
    if not isinstance(value, str) or value not in choices:
      raise self.invalid(name, f"one of {', '.join(choices)}")
    return choices[value]

  def invalid(self, name: str, allowed: str) -> UserError:
    return UserError(f"import: config.json: {name} = {shortened(self.values[name])} is not {allowed}")


def printable(name: str) -> str:
  """The name of a field for messages."""
  return name if name.isprintable() else repr(name)


def _is_harmless(name: str, value: object, kind: Kind) -> bool:
  return value is None or name in HARMLESS | kind.harmless or HARMLESS_NAMES.fullmatch(name) is not None


def _require_only(name: str, value: object, allowed: object) -> None:
  """Raises `UserError` unless a field has the only value that is supported; null stands for false."""
  if value != allowed and not (value is None and not allowed):
    raise UserError(
      f"import: config.json: {name} = {shortened(value)} changes what the model computes; only {shortened(allowed)}"
      " is supported"
    )


def _require_no_code(value: object) -> None:
  """Raises `UserError` for a model that comes with its code, which may compute something else."""
  classes = value if isinstance(value, dict) else {}
  if any(not name.startswith(("AutoTokenizer", "AutoProcessor", "AutoImage", "AutoFeature")) for name in classes):
    raise UserError(
      f"import: config.json: auto_map = {shortened(value)}: the model comes with code, which may compute something"
      " else; delete the field if the weights are of the standard model"
    )
