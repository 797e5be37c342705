"""The command: `bigmodel VERB --config=FILE[:arg] --workdir=DIR [--config.group.field=value ...]`.

Nothing heavy is imported until a verb needs it. Exit codes: 0 done, 2 the user's
input is wrong, 75 interrupted and resumable, 1 anything else; 69 tells the command that started
a worker that something is wrong with the worker's machine.
"""

import argparse
import atexit
import contextlib
import gc
import json
import os
import signal
import sys

INTERRUPTED = 75
UNFIT = 69  # of a worker, to the command that started it: something is wrong with its machine
LAB = ("fit", "compare", "reproduce")
AHEAD = ("forecast", "design")
STUDIES = ("study", "sweep", "status", "report")
USE = {"models": "models", "eval": "eval", "generate": "generate", "import": "import_", "export": "export"}


def main(argv: list[str] | None = None) -> int:
  """Runs one verb; returns the exit code."""
  if own := argv is None:
    argv = sys.argv[1:]
  arguments = _parse(argv)
  if getattr(arguments, "restarts", 0) > 0:
    return _supervise(argv, arguments)
  if own:
    # Much of what imports and tracing make lives on; looking through it for garbage took a third of a short command.
    gc.set_threshold(100_000, 10, 10)
    atexit.register(gc.freeze)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's own notes
  signal.signal(signal.SIGTERM, _interrupt)  # until a verb that saves first takes over
  from bigmodel import ahead, lab, studies, use, verbs
  from bigmodel.errors import UserError

  rooms = {
    **dict.fromkeys(LAB, lab),
    **dict.fromkeys(AHEAD, ahead),
    **dict.fromkeys(USE, use),
    **dict.fromkeys(STUDIES, studies),
  }
  room = rooms.get(arguments.verb, verbs)
  name: str = arguments.verb
  verb = getattr(room, USE.get(name, name))

  try:
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
      document = json.dumps(verb(arguments), allow_nan=False)
  except UserError as error:
    return _fail(arguments, str(error), 2)
  except KeyboardInterrupt:
    return _fail(arguments, "interrupted", INTERRUPTED)
  except Exception as error:
    if type(error).__name__ == "Interrupted":  # raised where heavy imports are
      return _fail(arguments, f"interrupted: {error}; the same command resumes", INTERRUPTED)
    if type(error).__name__ == "UnfitWorker":
      return _fail(arguments, str(error), UNFIT if arguments.worker else 1)
    first = (str(error).strip().splitlines() or [""])[0]
    return _fail(
      arguments, first if type(error).__name__ == "CheckpointError" else f"{type(error).__name__}: {first}", 1
    )
  if arguments.json:
    print(document)
  return 0


def _supervise(argv: list[str], arguments: argparse.Namespace) -> int:
  """The same command in a child process, restarted when it dies."""
  from bigmodel.train.supervise import progress, supervise

  rest, words = [], iter(argv)
  for word in words:
    if word == "--restarts":
      next(words)
    elif not word.startswith("--restarts="):
      rest.append(word)
  command = [sys.executable, "-m", "bigmodel.cli", *rest]
  return supervise(command, arguments.restarts, lambda: progress(arguments.workdir))


def _interrupt(signum: int, frame: object) -> None:
  raise KeyboardInterrupt


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
  if arguments.debug:
    import traceback

    traceback.print_exc()
  print(f"bigmodel {arguments.verb}: {message}", file=sys.stderr)
  if arguments.json:
    print(json.dumps({"error": message, "code": code}))
  return code


def _parse(argv: list[str]) -> argparse.Namespace:
  common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  common.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
  common.add_argument("--debug", action="store_true", help="show the traceback of an error")
  config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  config.add_argument(
    "--config", required=True, metavar="FILE[:arg]", help="a config file; --config.group.field=VALUE changes a field"
  )
  workdir = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  workdir.add_argument("--workdir", required=True, metavar="DIR", help="the folder of the run or study")

  hosts = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  hosts.add_argument(
    "--restarts", type=int, default=0, metavar="N", help="restart a process that died, N times in a row"
  )
  hosts.add_argument("--coordinator", default="", metavar="HOST:PORT", help="process 0, where no launcher says it")
  hosts.add_argument("--processes", type=int, default=0, metavar="N", help="processes of this job, one a host")
  hosts.add_argument("--process", type=int, default=-1, metavar="I", help="which of them this is")

  parser = argparse.ArgumentParser(
    "bigmodel", description="Scaling experiments, from one config file to a decision.", allow_abbrev=False
  )
  parser.add_argument("--version", action="version", version=_version())
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text, parents=[*parents, common], allow_abbrev=False)

  columns = argparse.ArgumentParser(add_help=False)
  for name, what in (
    ("n", "parameters N (fit: several, by commas, to see what counting otherwise does)"),
    ("d", "tokens D"),
    ("c", "FLOPs C"),
    ("x", "the scale of curves"),
  ):
    columns.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {what}")
  columns.add_argument("--loss", default="loss", metavar="COLUMN")
  columns.add_argument("--stderr", metavar="COLUMN", help="standard errors of the losses: fits weigh by them")
  columns.add_argument("--group", default="", metavar="COLUMN", help="a curve or fit for each of its values")
  columns.add_argument("--column", action="append", default=[], metavar="NAME=COLUMN", help="what else a law asks for")
  columns.add_argument("--drop-largest", type=int, default=0, metavar="K", help="leave out the K largest losses")

  data = add("data", "prepare the data of a config and print their card", config)
  data.add_argument("--card", default="", metavar="FILE.html", help="write the card as a page, with samples")
  plan = add("plan", "what a run or a study costs, before it starts", config)
  plan.add_argument("--workdir", default="", metavar="DIR", help="a study's folder: what has ended costs nothing more")
  plan.add_argument(
    "--topology", default="", metavar="KIND:SHAPE", help="chips to plan for: v5e:16x16, v5p:4x4x4, v6e:4x4, h100:8, ..."
  )
  plan.add_argument("--search", action="store_true", help="try meshes, remat policies and microbatches; best first")
  plan.add_argument(
    "--prices", default="", metavar="FILE", help="dollars a chip-hour, by kind (bigmodel/plan/prices.json)"
  )
  plan.add_argument(
    "--coordinate-check", nargs="?", const="", metavar="FILE.html",
    help="does a step move activations as much at every width and depth? (optim.parametrization; also as a page)",
  )  # fmt: skip
  train = add("train", "train one run, or resume it", config, workdir, hosts)
  train.add_argument(
    "--profile", type=int, default=0, metavar="STEPS", help="write a trace of that many steps to logs/profile"
  )
  evaluate = add("eval", "evaluate the newest sound checkpoint of a run", workdir)
  evaluate.add_argument("--choices", default="", metavar="FILE.jsonl", help="answer these multiple-choice questions")
  evaluate.add_argument("--completions", default="", metavar="FILE.jsonl", help="BLEU and chrF of completions of these")
  generate = add("generate", "continue a text with the newest sound checkpoint of a decoder", workdir)
  generate.add_argument("--prompt", default="", metavar="TEXT")
  generate.add_argument("--tokens", type=int, default=64, metavar="N", help="new ones")
  generate.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token each time")
  generate.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0: all")
  generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the fewest that have P")
  generate.add_argument("--beams", type=int, default=1, metavar="W", help="search W sequences at once; no sampling")
  generate.add_argument("--samples", type=int, default=1, metavar="N")
  generate.add_argument("--seed", type=int, default=0)
  import_ = add("import", "make a run of Hugging Face's files (GPT-2, BERT, Llama, Mixtral, ViT)", workdir)
  import_.add_argument("source", metavar="FOLDER", help="with config.json and *.safetensors")
  export = add("export", "write a run's weights as Hugging Face's files", workdir)
  export.add_argument("--to", required=True, metavar="FOLDER")
  export.add_argument("--type", required=True, choices=("gpt2", "bert", "llama", "mistral", "mixtral", "vit"))
  study = add("study", "price, train, fit, forecast, score and report a study, or resume it", config, workdir, hosts)
  sweep = add(
    "sweep", "train a config at every point of some axes, or go on with it; a leaderboard", config, workdir, hosts
  )
  sweep.add_argument(
    "--axis",
    action="append",
    default=[],
    metavar="NAME=V,V,...",
    help="or NAME=log:LOW:HIGH:COUNT, NAME=lin:...; repeatable",
  )
  sweep.add_argument("--points", type=int, default=0, metavar="N", help="points of the axes' product; 0: all of them")
  sweep.add_argument("--method", choices=("sobol", "random"), default="sobol", help="of choosing points")
  sweep.add_argument("--seeds", type=int, default=1, metavar="N", help="of every point: the noise")
  for verb in (study, sweep):
    verb.add_argument(
      "--workers", default="", metavar="KIND:N", help="train with so many processes: local, or of ray or slurm"
    )
    verb.add_argument("--worker-options", action="append", default=[], metavar="NAME=VALUE",
                      help="as Ray or submitit has it: num_gpus=1, timeout_min=240, ...; repeatable")  # fmt: skip
    verb.add_argument("--worker", default="", metavar="NAME", help="be one more worker of a study that has begun")
    verb.add_argument("--retry-failed", "--retry", dest="retry", action="store_true",
                      help="run failed and diverged runs again")  # fmt: skip
  status = add("status", "the runs of a study and where they are", workdir)
  status.add_argument("--watch", type=float, nargs="?", const=5.0, default=0.0, metavar="SECONDS",
                      help="again every so often, until all have ended")  # fmt: skip
  fit = add("fit", "fit laws to a study's folder, or to a CSV of anybody's runs", columns)
  fit.add_argument("points", metavar="POINTS.csv|STUDY", help="a CSV with one row a run, or a study's folder")
  fit.add_argument(
    "--law", default="", metavar="NAME,...", help="chinchilla, isoflop, power_offset, ..., FILE.py:NAME, or auto"
  )
  fit.add_argument(
    "--at",
    type=float,
    action="append",
    default=[],
    metavar="FLOPS",
    help="print the optimum at this budget (repeatable)",
  )
  forecast = add("forecast", "the loss at scales that have not been run, with intervals; sealed, and scored", columns)
  forecast.add_argument("points", metavar="POINTS.csv", help="one row a run; with --score, the truth")
  forecast.add_argument(
    "--at", action="append", default=[], metavar="X|N,D|C|FILE.csv", help="where (repeatable): C is its optimal N and D"
  )
  forecast.add_argument(
    "--reach", type=float, action="append", default=[], metavar="LOSS", help="the least compute to it"
  )
  forecast.add_argument("--max-params", type=float, metavar="N", help="what fits into memory; for budgets and --reach")
  forecast.add_argument("--max-tokens", type=float, metavar="D", help="what there is to train on")
  forecast.add_argument("--served", type=float, metavar="TOKENS", help="of inference, at 2 N FLOPs each, in the budget")
  forecast.add_argument("--law", default="", metavar="NAME,...", help="laws of N and D, weighted by their backtests")
  forecast.add_argument("--intervals", choices=("bootstrap", "nuts"), default="bootstrap", help="nuts needs numpyro")
  forecast.add_argument("--seal", default="", metavar="FILE.json", help="keep the forecast with its time and hash")
  forecast.add_argument(
    "--score", nargs="+", default=[], metavar="FILE.json", help="compare sealed forecasts with POINTS"
  )
  design = add("design", "which run to do next for a forecast: the most variance less for its compute", columns)
  design.add_argument("points", metavar="POINTS.csv", help="one row a run")
  design.add_argument("--target", type=float, required=True, metavar="FLOPS", help="the budget whose loss is forecast")
  design.add_argument("--cap", type=float, metavar="FLOPS", help="of the next run, at most (a tenth of the target)")
  compare = add(
    "compare", "what one recipe's compute is worth in another's terms, by scale, and where they cross", columns
  )
  compare.add_argument("a", metavar="A", help="a study's folder, or a CSV with one row a run")
  compare.add_argument("b", metavar="B", help="the other; its compute is told in A's terms")
  compare.add_argument("--report", default="", metavar="FILE.html", help="write it as a page, with plots")
  reproduce = add("reproduce", "published numbers of a paper beside ours: experiments/NAME.py")
  reproduce.add_argument("name", metavar="NAME")
  reproduce.add_argument("--data", default="", metavar="DIR", help="published points (or $BIGMODEL_SCALING_DATA)")
  reproduce.add_argument("--workdir", default="", metavar="DIR", help="of experiments that train (runs/NAME)")
  report = add("report", "write report.html and report.json again", workdir)
  report.add_argument("--table", default="", metavar="FILE", help="write every run as a row: .csv or .parquet")
  report.add_argument("--figures", choices=("pdf", "svg"), help="also save every figure in this format under figures/")
  models = add("models", "the families of models, and the counts of a config's model")
  models.add_argument("--config", metavar="FILE[:arg]", help="count this config's model, or every size of its study")

  launch = add("launch", "start train or study on other machines, or print the recipe that would")
  launch.add_argument("--on", required=True, choices=("tpu-vm", "gke", "slurm", "ray"))
  launch.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="the chips: v5e:4x4, v5p:4x4x4, h100:16")
  launch.add_argument("--dry-run", action="store_true", help="print the recipe and start nothing")
  launch.add_argument("--name", default="bigmodel", help="of the job")
  launch.add_argument("--zone", default="us-central2-b", help="tpu-vm")
  launch.add_argument("--runtime", default="tpu-ubuntu2204-base", help="tpu-vm: the image")
  launch.add_argument("--image", default="bigmodel:latest", help="gke: the container")
  launch.add_argument("--time", default="24:00:00", help="slurm: the job's limit")
  launch.add_argument("--source", default=".", metavar="DIR", help="the checkout: copied to TPU VMs, shared elsewhere")
  launch.add_argument("command", nargs=argparse.REMAINDER, metavar="-- train|study ...", help="what to run there")

  arguments, rest = parser.parse_known_args(argv)
  arguments.argv, arguments.overrides = argv, []
  for item in rest:
    if item.startswith("--config.") and getattr(arguments, "config", None):
      arguments.overrides.append(item.removeprefix("--config."))
    else:
      verbs.choices[arguments.verb].error(f"unrecognized argument: {item}")
  return arguments


def _version() -> str:
  from bigmodel import __version__

  return __version__


if __name__ == "__main__":
  sys.exit(main())
