"""Verbs for models that are there: their counts, evaluation, generation, and weights in and out."""

import math
from pathlib import Path
from typing import Any

from bigmodel import config as configs
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.verbs import Arguments, load, setup, show_table


def models(arguments: Arguments) -> list[dict[str, Any]]:
  from bigmodel import models as room
  from bigmodel import study as studies

  sizes: list[tuple[str, Any]] = []
  if arguments.config:
    config, the_study = load(arguments)
    sizes = [("config", config)]
    if the_study is not None and hasattr(the_study.design, "sizes"):
      label = lambda size: ", ".join(f"{name.split('.')[-1]} {value}" for name, value in size.items())
      sizes = [(label(size), configs.with_overrides(config, size)) for size in the_study.design.sizes]
  else:
    published = Path(__file__).parents[1] / "configs" / "published.py"
    if not published.exists():
      raise UserError("models: no configs/published.py beside the package; give --config=FILE[:arg]")
    module, _ = configs.load_module(str(published))
    sizes = [(name, module.get_config(name)) for name in module.NAMES]
  rows = []
  for label, config in sizes:
    room.check(config)
    resolved = studies.resolve_without_data(config)
    shape, counts = room.shape_of(resolved), room.counts_of(resolved)
    unit = "token" if config.data.kind == "text" else "example"
    rows.append({"name": label, **shape.describe(), "unit": unit, **counts.params(), **counts.flops(1)})
  short = lambda number: f"{number:.3g}" if number < 1e6 else f"{number / 1e6:,.4g} M"
  shown = [
    (row["name"], row["family"], *(short(row[name]) for name in ("params_total", "params_active")),
     f"{row['flops_exact']:.3g}", row["unit"])
    for row in rows
  ]  # fmt: skip
  title = f"families: {', '.join(room.FAMILIES)}"
  show_table(arguments, title, ("model", "family", "parameters", "active", "training FLOPs", "per"), shown)
  return rows


def eval(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.data import pipeline
  from bigmodel.tasks import choices
  from bigmodel.train.evaluate import evaluate

  if arguments.choices and arguments.completions:
    raise UserError("--choices, --completions: one of them, please")
  config, program, params, step = _restored(arguments.workdir, generating=bool(arguments.completions))
  if arguments.completions:
    values, intervals = _completions(arguments, config, program, params)
    details = {}
  elif arguments.choices:
    if config.task.name != "causal_lm":
      raise UserError(f"--choices: is for causal language models, not {config.task.name}")
    tokens = _tokenizer(arguments.workdir, config)
    size, context = config.eval.batch_size, config.data.context
    losses = lambda rows: program.values(params, rows, 0)["loss"]
    values = choices.score(choices.read(arguments.choices, tokens, context), losses, context, size)
    intervals, details = {}, {}
  else:
    from bigmodel import data as room
    from bigmodel import study as studies

    room.check(config)
    corpus = pipeline.prepare(config)
    studies.resolve(config, corpus)  # refuses data that are not for this model
    rows = pipeline.eval_rows(config, corpus)
    found = evaluate(program, params, config, rows)
    values = {"loss": found.loss, "loss_stderr": found.loss_stderr, "bits_per_byte": found.bits_per_byte}
    values, intervals, details = {**values, **found.metrics}, found.intervals, found.details
  if not math.isfinite(values.get("loss", 0.0)):
    raise UserError(f"{arguments.workdir}: the loss of held-out data is not finite at step {step}")
  known = {name: value for name, value in values.items() if math.isfinite(value)}
  table = [(name, value, intervals.get(name)) for name, value in known.items()]
  show_table(arguments, arguments.workdir, ("metric", "value", "90% interval"), table)
  for name, table in details.items():
    show_table(arguments, name, list(table[0]), [list(row.values()) for row in table])
  return {**dict.fromkeys(values), **known, "intervals": intervals, **details, "step": step}


def _completions(arguments: Arguments, config: Any, program: Any, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """BLEU and chrF of the likeliest tokens after each prompt, up to the first separator."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bigmodel import models as room
  from bigmodel.tasks import completions, generation

  if config.model.family != "decoder":
    raise UserError(f"--completions: is for decoders, not a {config.model.family}")
  tokens = _tokenizer(arguments.workdir, config)
  asked = completions.read(arguments.completions, tokens, config.data.context)
  longest = max(len(tokens.encode(text)) for _, text in asked) + 1
  model = room.build(config, jnp.dtype(config.train.compute_dtype))
  sample = program.generating(generation.sample)

  def complete(rows: Any) -> list[str]:
    new = min(longest, config.data.context + 1 - rows.shape[1])
    greedy = jnp.float32(0), jnp.float32(1), 0
    said, _ = sample(model, params, rows, new, jax.random.key(0), *greedy)
    return [tokens.decode(_until(row, tokens.separator)) for row in np.asarray(said)]

  return completions.score(asked, complete, config.eval.batch_size, config.eval.resamples)


def _restored(workdir: str, generating: bool = False) -> tuple[Any, Any, Any, int]:
  """A run's `(config, program, parameters, step)` of its newest sound checkpoint, on the run's mesh."""
  from bigmodel import record
  from bigmodel.parallel import reuse
  from bigmodel.train import programs, weights
  from bigmodel.train.checkpoint import Checkpoints

  config = weights.read_config_with_mesh(workdir)
  config = reuse.for_generation(config) if generating else reuse.for_evaluation(config)
  store = Checkpoints(absolute(workdir) / "checkpoints", config.train.keep)
  step = store.newest_sound()
  if step is None:
    ended = record.read(workdir)
    why = f"; the run diverged at step {ended['steps']}" if ended and ended["status"] == "diverged" else ""
    raise UserError(f"{workdir}: no sound checkpoint{why}")
  weights.warn_of_divergence(workdir, step)
  program = programs.program(config)
  params = weights.read_evaluated(config, store, step, program.shapes.params)
  weights.require_finite(params, f"{workdir}: checkpoint of step {step}")
  return config, program, params, step


def _tokenizer(workdir: str, config: Any) -> Any:
  """The tokenizer that came with imported weights, or that of the run's corpus."""
  from bigmodel.data import corpus, tokenizer
  from bigmodel.train import weights

  marks = weights.imported(workdir)
  if marks is None:
    return corpus.tokenizer_of(config)
  own = absolute(workdir) / "tokenizer.json"
  if not own.exists() or marks["end"] is None:
    raise UserError(f"{workdir}: tokenizer.json and eos_token_id of config.json did not come with these weights")
  return tokenizer.from_text(own.read_text(), marks["begin"], marks["end"])


def generate(arguments: Arguments) -> dict[str, Any]:
  setup()
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bigmodel import models as room
  from bigmodel.tasks import generation

  for name, least in (("tokens", 1), ("samples", 1), ("beams", 1), ("top_k", 0)):
    if getattr(arguments, name) < least:
      raise UserError(f"--{name.replace('_', '-')}: {getattr(arguments, name)} is less than {least}")
  if not 0 < arguments.top_p <= 1 or arguments.temperature < 0:
    raise UserError("--top-p is in (0, 1], --temperature not negative")
  config, program, params, step = _restored(arguments.workdir, generating=True)
  if config.model.family != "decoder":
    raise UserError(f"generate: is for decoders, not a {config.model.family}")
  tokens = _tokenizer(arguments.workdir, config)
  prompt = np.concatenate([[tokens.begin], tokens.encode(arguments.prompt)]).astype(np.int32)
  limit = config.data.context
  if len(prompt) + arguments.tokens > limit + 1:
    raise UserError(
      f"--prompt: {len(prompt) - 1} tokens and {arguments.tokens} new ones are more than the context of {limit}"
    )
  model = room.build(config, jnp.dtype(config.train.compute_dtype))
  if arguments.beams > 1:
    said, chances = program.generating(generation.beam_search)(
      model, params, prompt[None], arguments.tokens, arguments.beams, jnp.int32(tokens.separator)
    )
  else:
    rows = np.repeat(prompt[None], arguments.samples, axis=0)
    said, each = program.generating(generation.sample)(
      model, params, rows, arguments.tokens, jax.random.key(arguments.seed),
      jnp.float32(arguments.temperature), jnp.float32(arguments.top_p), arguments.top_k,
    )  # fmt: skip
    ends = [len(_until(row, tokens.separator)) + 1 for row in np.asarray(said)]
    chances = [row[:end].sum() for row, end in zip(np.asarray(each), ends, strict=True)]
  texts = [tokens.decode(_until(row, tokens.separator)) for row in np.asarray(said)]
  result = [{"text": text, "log_probability": float(c)} for text, c in zip(texts, chances, strict=True)]
  if not arguments.json:
    for one in result:
      print(arguments.prompt + one["text"])
      print(f"[log-probability {one['log_probability']:.3f}]")
  return {"prompt": arguments.prompt, "step": step, "continuations": result}


def _until(row: Any, separator: int) -> Any:
  """A row up to the first separator."""
  ends = [i for i, token in enumerate(row) if token == separator]
  return row[: ends[0]] if ends else row


def import_(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel import study as studies
  from bigmodel.train import weights

  facts = weights.import_weights(arguments.source, arguments.workdir, studies.default_config)
  show_table(arguments, arguments.workdir, ("field", "value"), list(facts.items()))
  return facts


def export(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.train import weights

  facts = weights.export_weights(arguments.workdir, arguments.to, arguments.type)
  show_table(arguments, arguments.workdir, ("field", "value"), list(facts.items()))
  return facts
