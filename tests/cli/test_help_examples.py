"""The examples at the end of every verb's --help run, in a folder where a small study stands for the quickstart."""

import importlib.util
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from bigmodel.cli import main

ROOT = Path(__file__).parents[2]
# A verb comes after those whose results its examples use.
ORDER = ("study", "report", "status", "train", "sweep", "fit", "forecast", "design", "compare", "import", "export")
VERBS = sorted(main.verbs(), key=lambda verb: ORDER.index(verb) if verb in ORDER else len(ORDER))
EXAMPLES = [
  example
  for verb in VERBS
  if verb != "reproduce"  # tests/laws/test_reproduce.py runs the experiments
  for example in main.find(verb).EXAMPLES
]
QUICKSTART = """
from bigmodel.study import IsoFlop, Scan, Study, Target, default_config
SIZES = [{{"model.width": w, "model.head_size": w // 2}} for w in (8, 12, 16)]
BUDGETS = (2e8, 4e8, 8e8)

def get_config(arg=None):
  config = default_config()
  config.data.name, config.data.path, config.data.heldout_fraction = "text_files", {path!r}, 0.2
  config.data.context, config.data.repeat = 64, True
  config.model.layers, config.model.heads, config.model.activation = 1, 2, "relu2"
  config.train.batch_size, config.train.checkpoint_every, config.eval.tokens = 4, 25, 2048
  config.parallel.data = 2
  return config

def settings(params, tokens):
  return {{"optim.lr": 0.01}}

def get_study(config):
  return Study(
    name="small", question="Does it work?", design=IsoFlop(BUDGETS, SIZES, ratios=(0.5, 30)), settings=settings,
    target=Target(8 * BUDGETS[-1], SIZES[1:]),
  )
"""
LAW = """
from bigmodel.laws.forms import POSITIVE, decay, law

@law("my_law", "this test", grid={"alpha": (0.2, 0.5)}, linear=("E", "A"), E=POSITIVE, A=POSITIVE, alpha=(0, 3))
def my_law(p, N):
  return p.E + p.A * decay(N, p.alpha)
"""
GPT2 = {"positions": "learned", "norm": "layer", "bias": True, "activation": "gelu"}


def run(command: str) -> int:
  return main.main(shlex.split(command)[1:])


@pytest.fixture(scope="module")
def folder(corpus_dir, tmp_path_factory):
  """A folder with the inputs of the examples: configs, a corpus, CSVs, questions, and a Hugging Face model."""
  root = tmp_path_factory.mktemp("examples")
  (root / "configs").mkdir()
  (root / "configs" / "quickstart.py").write_text(QUICKSTART.format(path=str(corpus_dir / "*.jsonl")))
  shutil.copy(ROOT / "configs" / "published.py", root / "configs")
  shutil.copytree(corpus_dir, root / "corpus")
  (root / "mine.py").write_text(LAW)
  (root / "questions.jsonl").write_text('{"question": "the model", "choices": [" reads", " line"], "answer": 0}\n')
  (root / "pairs.jsonl").write_text('{"prompt": "the model", "completion": " reads"}\n')
  x = np.geomspace(1e4, 1e8, 16)
  curves = [f"{n},{a + n**-0.3},{name}" for name, a in (("small", 0.2), ("large", 0.1)) for n in x]
  (root / "curves.csv").write_text("\n".join(["examples,error,model", *curves]) + "\n")
  small = [(N, D) for N in np.geomspace(1e7, 1e9, 6) for D in np.geomspace(1e9, 1e11, 6)]
  for name, sizes in (("points", small), ("truth", [(4e9, 4e11), (8e9, 8e11)])):
    losses = [1.7 + 400 / N**0.34 + 1500 / D**0.36 for N, D in sizes]
    rows = [f"{N},{D},{D / (1 + i % 3)},{loss}" for i, ((N, D), loss) in enumerate(zip(sizes, losses, strict=True))]
    (root / f"{name}.csv").write_text("\n".join(["params,tokens,unique,loss", *rows]) + "\n")
  before = os.getcwd()
  os.chdir(root)
  yield root
  os.chdir(before)


@pytest.fixture
def prepared(folder):
  """`prepared(example)` makes the outputs of earlier commands that it needs, and returns it with fewer steps."""

  def prepare(example: str) -> str:
    verb = example.split()[1]
    if verb == "compare" and not Path("runs/plain").exists():
      for name in ("plain", "gated"):
        shutil.copytree("runs/quickstart", f"runs/{name}")
        shutil.copy("runs.csv", f"{name}.csv")
    if verb == "import" and not Path("downloads").exists():
      changes = " ".join(f"--config.model.{name}={value}" for name, value in GPT2.items())
      train = "bigmodel train --config=configs/quickstart.py --workdir=runs/source --config.train.steps=1"
      assert run(f"{train} {changes}") == 0
      assert run("bigmodel export --workdir=runs/source --to=downloads/gpt2 --type=gpt2") == 0
    if verb in ("train", "sweep"):
      example += " --config.train.steps=10"
    return example

  return prepare


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example, prepared, capsys):
  if "--figures" in example and importlib.util.find_spec("kaleido") is None:
    pytest.skip("figures need kaleido")
  command = prepared(example)
  capsys.readouterr()
  code = run(command)
  assert code == 0, capsys.readouterr().err
