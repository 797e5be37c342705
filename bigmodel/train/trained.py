"""Loads trained models to evaluate them or to generate text: parameters on the run's mesh, and the tokenizer."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import models, record
from bigmodel.config import Config, require
from bigmodel.data import corpus, pipeline, tokenizer
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.parallel import reuse
from bigmodel.tasks import choices, completions, generation
from bigmodel.train import configs, imported_runs, parameters, places, programs, resolution
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.types import Params


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's newest sound checkpoint, ready to evaluate or to generate."""

  workdir: str
  config: Config
  program: programs.Program
  params: Params
  step: int

  @property
  def record(self) -> record.Record:
    """The record of the run: losses, sizes, FLOPs and times. Raises `UserError` where the run has not ended."""
    ended = record.read(self.workdir)
    if ended is None:
      raise UserError(f"{self.workdir}: the run has not ended, so it has no record")
    return ended


def load(workdir: str, generating: bool = False) -> Trained:
  """Loads the newest sound checkpoint of a run on the run's mesh, or on the most similar mesh that fits the devices.

  Only the parameters are read, each device its own shards. Raises `UserError` where there is no sound checkpoint or
  parameters are not finite.
  """
  config = places.replaced(configs.read_config_with_mesh(workdir), places.last(workdir))
  if imported_runs.is_imported(workdir):
    models.check(config)  # imported weights may have a head that no task trains, such as a pooler
  else:
    resolution.check_without_data(config)
  store = Checkpoints(absolute(workdir) / "checkpoints", config.train.keep)
  step = store.newest_sound()
  if step is None:
    ended = record.read(workdir)
    why = f"; the run diverged at step {ended.steps}" if ended and ended.status == "diverged" else ""
    raise UserError(f"{workdir}: no sound checkpoint{why}")
  parameters.warn_of_divergence(workdir, step)
  try:
    config = reuse.for_generation(config) if generating else reuse.for_evaluation(config)
    program = programs.program(config)
  except ArithmeticError as error:  # for sizes that no model has
    raise UserError(f"{workdir}: config.json is corrupt ({str(error).splitlines()[0]}); restore it") from error
  params = parameters.read_evaluated(config, store, step, program.shapes.params)
  parameters.require_finite(params, f"{workdir}: checkpoint of step {step}")
  return Trained(workdir, config, program, params, step)


def held_out_rows(trained: Trained) -> pipeline.EvalRows:
  """The held-out rows of a run. Raises `UserError` for imported weights, which have no data of their own."""
  if not imported_runs.is_imported(trained.workdir):
    return resolution.held_out_rows(trained.config)
  is_decoder = trained.config.model.family == "decoder"
  evaluate = "evaluate them with --choices=FILE.jsonl or --completions=FILE.jsonl, or " if is_decoder else ""
  raise UserError(
    f"{trained.workdir}: imported weights have no data of their own to evaluate on; {evaluate}train from them on your"
    f" data, with config.train.init_from={trained.workdir}"
  )


def tokenizer_of(trained: Trained) -> tokenizer.Tokenizer:
  """The tokenizer that came with imported weights, or that of the run's corpus."""
  ends = imported_runs.text_ends(trained.workdir)
  if ends is None:
    return corpus.tokenizer_of(trained.config)
  path = absolute(trained.workdir) / "tokenizer.json"
  require(path.exists(), f"{trained.workdir}: no tokenizer.json came with these weights, so they cannot read text")
  require(
    ends.end is not None,
    f"{trained.workdir}: no token that ends a text came with these weights (eos_token_id of config.json or"
    " generation_config.json, eos_token of tokenizer_config.json)",
  )
  tokens, vocab = tokenizer.from_text(path.read_text(), ends.begin, ends.end), trained.config.model.vocab
  require(tokens.vocab <= vocab, f"{path}: has {tokens.vocab} tokens, and the model of {trained.workdir} only {vocab}")
  return tokens


def stops_of(trained: Trained, tokens: tokenizer.Tokenizer) -> np.ndarray:
  """The ids at which generation stops: that of the tokenizer's separator first, int32[stops]."""
  ends = imported_runs.text_ends(trained.workdir)
  return np.asarray(list(dict.fromkeys([tokens.separator, *(ends.stops if ends else ())])), np.int32)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Options for continuing a text.

  A temperature of 0 takes the likeliest token each time. `top_k` samples among that many tokens (0: all) and `top_p`
  among the fewest tokens that have this probability together. `beams` above 1 searches that many sequences at once
  and samples nothing.
  """

  tokens: int = 64
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  beams: int = 1
  samples: int = 1
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Continuation:
  text: str
  log_probability: float  # of the new tokens, under the model


def generate(trained: Trained, prompt: str, sampling: Sampling) -> list[Continuation]:
  """Continues `prompt` with a decoder, `sampling.samples` or `sampling.beams` times."""
  _require_decoder(trained, "generate")
  tokens = tokenizer_of(trained)
  prompt_P = np.concatenate([[tokens.begin], tokens.encode(prompt)]).astype(np.int32)
  limit = trained.config.data.context
  if len(prompt_P) + sampling.tokens > limit + 1:
    raise UserError(
      f"--prompt: {len(prompt_P) - 1} tokens and {sampling.tokens} new ones are more than the context of {limit}"
    )
  stops = stops_of(trained, tokens)
  new_BxT, log_probabilities = _generated(trained, prompt_P, sampling, stops)
  texts = [tokens.decode(_before(row, stops)) for row in new_BxT]
  return [Continuation(text, float(chance)) for text, chance in zip(texts, log_probabilities, strict=True)]


def _generated(
  trained: Trained, prompt_P: np.ndarray, sampling: Sampling, stops: np.ndarray
) -> tuple[np.ndarray, Sequence[float]]:
  """New tokens of each continuation, and their log-probability up to the first of the `stops`."""
  model = models.build(trained.config, jnp.dtype(trained.config.train.compute_dtype))
  if sampling.beams > 1:
    new_BxT, chances = trained.program.generating(generation.beam_search)(
      model, trained.params, prompt_P[None], sampling.tokens, sampling.beams, jnp.asarray(stops)
    )
    return np.asarray(new_BxT), chances
  prompts_BxP = np.repeat(prompt_P[None], sampling.samples, axis=0)
  key, temperature, top_p = (
    jax.random.key(sampling.seed),
    jnp.float32(sampling.temperature),
    jnp.float32(sampling.top_p),
  )
  sample = trained.program.generating(generation.sample)
  new_BxT, log_probabilities_BxT = sample(
    model, trained.params, prompts_BxP, sampling.tokens, key, temperature, top_p, sampling.top_k
  )
  lengths = [len(_before(row, stops)) + 1 for row in np.asarray(new_BxT)]
  chances = [row[:length].sum() for row, length in zip(np.asarray(log_probabilities_BxT), lengths, strict=True)]
  return np.asarray(new_BxT), chances


def score_completions(
  trained: Trained, path: str, skip_long: bool = False
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """BLEU, chrF and exact matches of greedy completions of the prompts in a JSONL file, and their 90% intervals.

  `skip_long` skips prompts that do not fit in the context, and counts them.
  """
  _require_decoder(trained, "--completions")
  tokens, context = tokenizer_of(trained), trained.config.data.context
  prompts = completions.read(path, tokens, context, skip_long)
  longest = max(len(tokens.encode(text)) for _, text in prompts.pairs) + 1
  model = models.build(trained.config, jnp.dtype(trained.config.train.compute_dtype))
  sample, stops = trained.program.generating(generation.sample), stops_of(trained, tokens)

  def complete(rows_BxP: np.ndarray) -> list[str]:
    new = min(longest, context + 1 - rows_BxP.shape[1])
    greedy = jnp.float32(0), jnp.float32(1), 0
    new_BxT, _ = sample(model, trained.params, rows_BxP, new, jax.random.key(0), *greedy)
    return [tokens.decode(_before(row, stops)) for row in np.asarray(new_BxT)]

  return completions.score(prompts, complete, trained.config.eval.batch_size, trained.config.eval.resamples)


def score_choices(trained: Trained, path: str, skip_long: bool = False) -> dict[str, float]:
  """The accuracy of a causal language model on the multiple-choice questions of a JSONL file.

  `skip_long` skips questions that do not fit in the context, and counts them.
  """
  config = trained.config
  require(config.task.name == "causal_lm", f"--choices: is for causal language models, not {config.task.name}")
  questions = choices.read(path, tokenizer_of(trained), config.data.context, skip_long)

  def losses(rows_BxT: np.ndarray) -> np.ndarray:
    return trained.program.values(trained.params, rows_BxT, 0)["loss"]

  return choices.score(questions, losses, config.data.context, config.eval.batch_size)


def _require_decoder(trained: Trained, where: str) -> None:
  family = trained.config.model.family
  require(family == "decoder", f"{where}: is for decoders, not a {family}")


def _before(row_T: np.ndarray, stops: np.ndarray) -> np.ndarray:
  """The tokens of a row before the first of the `stops`."""
  ends = np.flatnonzero(np.isin(row_T, stops))
  return row_T[: ends[0]] if len(ends) else row_T
