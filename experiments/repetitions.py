"""Does the forecast of the quickstart hold with other seeds and corpora?

Claim (ours): in at least 8 of 10 repetitions the error is at most 1.5% and the 90% interval at most 8% wide, and at
least 8 of 10 truths lie in it.

Method: `configs/quickstart.py`, with the seeds and corpora of `REPETITIONS`. Each repetition seals its forecast of a
run of 8 times the largest fitted budget before it trains that run, and all are kept in experiments/repetitions/.

Result: all 10 truths lie in their 90% intervals, 9 of which are at most 8% wide (the other 8.4%). 7 errors are at most
1.5% (median .5%); the other three losses are 2.4 to 2.5% higher than forecast. The standard deviation between seeds is
.0005 to .014, and the losses of a budget differ by 2% only, so that little tells a law with an offset from one
without. With the forecaster's second version, which was changed with their truths in view, and rates that fell with
the tokens only, 5 of 6 others were covered, and 3 of their errors were at most 1.5%.

    bigmodel reproduce repetitions               # verifies the seals and scores what is kept
    bigmodel ledger experiments/repetitions --page=repetitions.html

A repetition is run again, and kept, by

    bigmodel study --config=experiments/repetitions.py:science_1 --workdir=runs/repetitions/science_1
    bigmodel ledger runs/repetitions/science_1 --keep=experiments/repetitions
"""

import dataclasses
from pathlib import Path

from bigmodel.config import Config, load_module, require, require_choice
from bigmodel.laws.reproduce import Result
from bigmodel.study import Study, ledger

FOLDER = Path(__file__).parent / "repetitions"
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
quickstart, _ = load_module(str(QUICKSTART))
TEXTS = Path(__file__).parent / "ledger" / "data.py"
HELD_OUT = {"heldout": (), "heldout_fraction": 0.05}  # documents at random
LEARNING = ("flax", "grain", "jax", "optax", "orbax-checkpoint", "tensorflow-datasets")
CORPORA = {
  "quickstart": {},  # its own; later entries differ from it
  "science": {"name": f"{TEXTS}:python", "distributions": ("numpy", "scipy"), **HELD_OUT},
  "learning": {"name": f"{TEXTS}:python", "distributions": LEARNING, **HELD_OUT},
  "docstrings": {"name": f"{TEXTS}:english", "distributions": (*LEARNING, "numpy", "polars", "scipy"), **HELD_OUT},
}
SEEDS = {"quickstart": range(4), "science": range(1, 3), "learning": range(1, 3), "docstrings": range(1, 3)}
REPETITIONS = {f"{corpus}_{seed}": (corpus, seed) for corpus, seeds in SEEDS.items() for seed in seeds}
NARROW, NEAR = 0.08, 0.015


def get_config(arg: str = "") -> Config:
  require_choice("experiments/repetitions.py", arg, REPETITIONS)
  corpus, seed = REPETITIONS[arg]
  config = quickstart.get_config()
  config.data.update(CORPORA[corpus])
  config.seed = config.data.seed = seed
  return config


def get_study(config: Config) -> Study:
  corpus = next(name for name in reversed(CORPORA) if all(config.data[k] == v for k, v in CORPORA[name].items()))
  return dataclasses.replace(quickstart.get_study(config), name=f"{corpus}_{config.seed}")


def measure(workdir: Path, quiet: bool) -> list[Result]:
  """The scores of what is kept; nothing is trained."""
  del workdir, quiet
  kept = ledger.collect([FOLDER])
  require(bool(kept.forecasts), f"reproduce: {FOLDER} holds no forecast with its truth")
  made = kept.forecasts
  [total] = [totals for totals in kept.totals if totals.distance == "all"]
  return [
    Result("repetitions", None, len(made)),
    Result("truths inside the 90% interval", None, sum(one.inside["interval90"] for one in made)),
    Result(f"errors of at most {NEAR:.1%}", None, sum(abs(one.log_error) <= NEAR for one in made)),
    Result(f"90% intervals at most {NARROW:.0%} wide", None, sum(one.width <= NARROW for one in made)),
    Result("median error, ln loss", None, total.median_error),
    Result("median width of 90% intervals, ln loss", None, total.median_width),
  ]
