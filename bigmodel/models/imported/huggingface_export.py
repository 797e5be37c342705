"""Converts our config to the config.json of Hugging Face's models, or lists the fields that prevent it."""

from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.files import JsonObject
from bigmodel.models.imported import huggingface_rotary
from bigmodel.models.imported.huggingface_config import ACTIVATIONS, EPSILONS, EXPERTS, SIZES
from bigmodel.models.imported.huggingface_fields import KINDS, require_kind

FAMILIES = {"bert": "bert", "vit": "vit"}  # of the types that are not decoders
# The only values of our fields that a type supports.
FIXED = {
  "gpt2": {"norm": "layer", "norm_first": True, "bias": True, "positions": "learned", "qk_norm": False, "experts": 0},
  "llama": {"norm": "rms", "norm_first": True, "bias": False, "positions": "rotary", "qk_norm": False, "experts": 0},
}


def config_of(kind: str, config: Config) -> JsonObject:
  """Converts our config to their config.json. Raises `UserError` with all fields that the type does not support."""
  require_kind(kind)
  family, model = _family(kind), config.model
  if model.family != family:
    fitting = [other for other in KINDS if _family(other) == model.family]
    types = f"; types for a {model.family}: {', '.join(fitting)}" if fitting else "; no type is for such models"
    raise UserError(f"export: a {kind} needs the family {family}, not {model.family}{types}")
  obstacles = _obstacles(kind, config)
  if obstacles:
    fitting = [other for other in KINDS if _family(other) == family and not _obstacles(other, config)]
    other = f"the model fits --type={' or '.join(fitting)}" if fitting else "no other type fits, either"
    raise UserError(f"export: a {kind} cannot have {'; '.join(obstacles)}; {other}")
  return _shared(kind, config) | _others(kind, config)


def _family(kind: str) -> str:
  return FAMILIES.get(kind, "decoder")


def _llama_like(kind: str) -> str:
  """The type that has the tables of this one."""
  return "llama" if kind in ("mistral", "mixtral") else kind


def _obstacles(kind: str, config: Config) -> list[str]:
  """Each field whose value the type does not support, with the values that it does support."""
  model = config.model
  allowed: dict[str, object] = dict(FIXED.get(_llama_like(kind), {}))
  if kind == "mixtral":
    allowed["experts"] = max(2, model.experts)  # any number from 2 up
  if kind == "gpt2":
    allowed["kv_heads"] = model.heads
  found = [
    f"config.model.{name} = {model[name]!r} (only {value!r})" for name, value in allowed.items() if model[name] != value
  ]
  if _llama_like(kind) != "llama" and model.head_size * model.heads != model.width:
    found.append(f"config.model.head_size = {model.head_size} (only width / heads = {model.width / model.heads:g})")
  activations = sorted(set(ACTIVATIONS[kind].values()))
  if model.activation not in activations:
    found.append(f"config.model.activation = {model.activation!r} (only {' or '.join(map(repr, activations))})")
  return found


def _shared(kind: str, config: Config) -> JsonObject:
  """Returns the entries of their config.json that equal one of our fields."""
  model, like = config.model, _llama_like(kind)
  sizes = SIZES[like] | (EXPERTS if kind == "mixtral" else {})
  activation = next(theirs for theirs, ours in ACTIVATIONS[kind].items() if ours == model.activation)
  return {
    "model_type": kind,
    **{name: model[ours] for ours, name in sizes.items()},
    EPSILONS[like]: model.epsilon,
    "activation_function" if kind == "gpt2" else "hidden_act": activation,
  }


def _others(kind: str, config: Config) -> JsonObject:
  """Returns the entries of their config.json that do not equal one of our fields."""
  model, context = config.model, config.data.context if config.data.kind == "text" else 0
  if kind == "gpt2":
    return {
      "n_inner": model.feed_forward,
      "n_positions": context,
      "tie_word_embeddings": model.tie_embeddings,
      "architectures": ["GPT2LMHeadModel"],
    }
  if kind == "bert":
    return {"architectures": ["BertForMaskedLM" if model.head == "masked_lm" else "BertModel"]}
  if kind == "vit":
    height, width, channels = model.inputs
    return {
      "image_size": height if height == width else [height, width],
      "num_channels": channels,
      "id2label": {str(i): f"class {i}" for i in range(model.outputs)},
      "architectures": ["ViTForImageClassification"],
    }
  return {
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_size,
    **huggingface_rotary.written(config),
    "tie_word_embeddings": model.tie_embeddings,
    "max_position_embeddings": context,
    **({} if kind == "llama" else {"sliding_window": None}),  # where it is absent, Mistral's is 4096
    "architectures": [f"{kind.capitalize()}ForCausalLM"],
  }
