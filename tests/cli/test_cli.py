"""The command as a user sees it: fast help, one line for each error, one document with --json."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bigmodel import optim
from bigmodel.planner import coordinates

CONFIG = """
from bigmodel.study import default_config
def get_config(arg=None):
  config = default_config()
  config.data.name, config.data.path, config.data.heldout_fraction = "text_files", {path!r}, 0.2
  config.data.context, config.model.width, config.model.layers, config.model.head_size = 32, 16, 1, 8
  config.train.steps, config.train.batch_size, config.eval.tokens = int(arg or 6), 8, 2048
  config.train.log_every = 2
  return config
"""


def call(*arguments):
  done = subprocess.run(
    [sys.executable, "-m", "bigmodel.cli", *map(str, arguments)], capture_output=True, text=True, env=os.environ
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def config_file(corpus_dir, tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG.format(path=str(corpus_dir / "*.jsonl")))
  return path


def test_help_takes_under_half_a_second():
  times = []
  for _ in range(3):
    start = time.perf_counter()
    code, out, _ = call("--help")
    times.append(time.perf_counter() - start)
    assert code == 0
    for verb in ("data", "plan", "train", "eval", "study", "status", "fit", "report", "models"):
      assert verb in out
  assert min(times) < 0.5


def test_a_run_that_diverges_exits_with_1_and_prints_its_record(config_file, tmp_path, inside):
  common = (
    f"--config={config_file}:8",
    f"--workdir={tmp_path / 'run'}",
    "--config.optim.lr=1e30",
    "--config.optim.warmup=0",
    "--json",
  )
  for _ in range(2):  # and when it is asked for again
    code, out, _ = inside("train", *common)
    assert (code, json.loads(out)["status"]) == (1, "diverged")
  changes = "lower config.optim.lr (now 1e+30) or raise config.optim.warmup (now 0)"
  code, out, _ = inside("train", *common[:-1])
  assert code == 1
  assert f"; {changes}, in another --workdir" in out
  axes = (f"--config={config_file}:8", "--axis=optim.lr=1e29,1e30", "--config.optim.warmup=0")
  for _ in range(2):
    code, out, err = inside("sweep", *axes, f"--workdir={tmp_path / 'sweep'}")
    assert code == 1
    assert "leaderboard" in out
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"bigmodel sweep: {tmp_path / 'sweep'}: all 2 runs diverged, such as ")
    assert line.endswith("; lower config.optim.lr (now 1e+29) or raise config.optim.warmup (now 0)")


def test_train_eval_status_and_models_print_one_document(config_file, tmp_path, inside):
  work = tmp_path / "run"
  code, out, err = inside("train", f"--config={config_file}:8", f"--workdir={work}", "--json", "--profile=2")
  assert code == 0, err
  sealed = json.loads(out)
  assert sealed["steps"] == 8
  assert list((work / "logs" / "profile").rglob("*.xplane.pb"))
  code, out, _ = inside("eval", f"--workdir={work}", "--json")
  assert json.loads(out)["loss"] == pytest.approx(sealed["loss_eval"], rel=1e-6)
  code, out, _ = inside("status", f"--workdir={work}", "--json")
  assert [row["state"] for row in json.loads(out)["runs"]] == ["finished"]
  code, out, _ = inside("models", f"--config={config_file}", "--json")
  assert json.loads(out)[0]["params_total"] == sealed["params_total"]
  code, out, _ = inside("data", f"--config={config_file}", "--json")
  assert json.loads(out)["sha256"] == sealed["data_sha256"]
  code, out, _ = inside("plan", f"--config={config_file}", "--json")
  assert json.loads(out)["flops_exact"] == pytest.approx(sealed["flops_exact"] * 6 / 8)


def test_a_preset_that_cannot_be_filled_prints_one_note(config_file, tmp_path, inside):
  note = (  # the model is dense
    "preset: ep prefers expert=4, but expert=1 is the largest size that divides the devices, the model and the batch\n"
  )
  ep = "--config.parallel.preset=ep", "--config.parallel.data=0", "--config.parallel.fsdp=1"  # compiles faster
  _, out, _ = inside("plan", f"--config={config_file}", "--topology=h100:8", *ep)
  assert out.count(note) == 1
  _, out, _ = inside("plan", f"--config={config_file}", *ep)
  assert out.count(note) == 1
  code, out, err = inside("train", f"--config={config_file}:8", f"--workdir={tmp_path / 'run'}", *ep)
  assert code == 0, err
  assert err.count(note) == 1
  assert note not in out


def test_an_interrupted_command_exits_75_and_resumes(config_file, tmp_path):
  import signal

  command = [sys.executable, "-m", "bigmodel.cli", "train", f"--config={config_file}:100000"]
  command += [f"--workdir={tmp_path / 'run'}", "--config.data.repeat=true", "--config.parallel.data=1"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  while process.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert "the same command resumes" in err


BAD = [
  (["--config.optim.lrr=1"], "did you mean 'optim.lr'"),
  (["--config.optim.lr=fast"], "not of type float"),
  (["--config.optim.schedule=cosin"], "did you mean 'cosine'"),
  (["--config.model.kv_heads=3"], "does not divide"),
  (["--config.parallel.data=3"], "3 devices are required|not divisible by the mesh"),
  (["--config.train.batch_size=9", "--config.parallel.data=2"], "not divisible by the mesh"),
  (["--config.data.context=10000000"], "longer than the"),
  (["--config.data.path=/no/such/*.txt"], "no .txt, .md or .jsonl file"),
  (["--config.data.path=EMPTY"], "corpus is empty|nothing to"),
  (["--config.data.tokens=1000000000"], "beyond the corpus"),
  (["--config.train.steps=100000"], "data.repeat=true"),
  (["--config.data.name=no_such_set"], "nor a TFDS dataset"),
  (["--config.train.tokens=5"], "set one of tokens"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_bad_input_is_one_line_exit_2_and_writes_nothing(config_file, tmp_path, inside, arguments, says):
  import re

  (tmp_path / "empty.txt").write_text("\n \n")
  arguments = [a.replace("EMPTY", str(tmp_path / "empty.txt")) for a in arguments]
  code, out, err = inside("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *arguments)
  assert code == 2, err
  assert out == ""
  assert len(err.strip().splitlines()) == 1, err
  assert re.search(says, err), err
  assert not (tmp_path / "run").exists()


def test_unusable_workdirs_are_refused(config_file, tmp_path, inside):
  (tmp_path / "file").write_text("x")
  code, _, err = inside("train", f"--config={config_file}", f"--workdir={tmp_path / 'file' / 'run'}")
  assert code == 2
  assert "cannot write here" in err
  work = tmp_path / "run"
  assert inside("train", f"--config={config_file}", f"--workdir={work}")[0] == 0
  code, _, err = inside("train", f"--config={config_file}", f"--workdir={work}", "--config.optim.lr=0.5")
  assert code == 2
  assert "optim.lr: 0.003 -> 0.5" in err
  (work / "record.json").write_text("{")
  code, _, err = inside("train", f"--config={config_file}", f"--workdir={work}")
  assert code == 2
  assert "record.json: is corrupt" in err
  for verb in ("eval", "status", "report"):
    code, _, err = inside(verb, f"--workdir={tmp_path / 'nothing'}")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_tracebacks_are_shown_only_with_debug(config_file, tmp_path, inside):
  arguments = ["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--config.optim.lrr=1"]
  assert "Traceback" not in inside(*arguments)[2]
  assert "Traceback" in call(*arguments, "--debug")[2]


def test_fit_takes_any_csv(tmp_path, inside):
  import numpy as np

  rng = np.random.default_rng(0)
  rows = ["params,tokens,ce"]
  for n in np.geomspace(1e6, 1e8, 6):
    for d in np.geomspace(1e8, 1e10, 6):
      rows.append(f"{n},{d},{1.7 + 400 / n**0.34 + 1500 / d**0.36 + rng.normal() * 1e-4}")
  (tmp_path / "points.csv").write_text("\n".join(rows))
  code, out, err = inside(
    "fit", tmp_path / "points.csv", "--n=params", "--d=tokens", "--loss=ce", "--at=1e20", "--json"
  )
  assert code == 0, err
  fit = json.loads(out)
  assert fit["laws"][0]["params"]["E"] == pytest.approx(1.7, rel=0.01)
  assert fit["optimum"][0]["N"] * fit["optimum"][0]["D"] * 6 == pytest.approx(1e20)
  for arguments, says in (
    (["--n=param", "--d=tokens", "--loss=ce"], "did you mean 'params'"),
    (["--n=params", "--loss=ce"], "at least two"),
  ):
    code, out, err = inside("fit", tmp_path / "points.csv", *arguments, "--json")
    assert code == 2
    assert says in err
    assert json.loads(out)["code"] == 2


REFUSED = [name for name, one in optim.optimizers.BUILT_IN.items() if not optim.parametrization.transfers(one)]


@pytest.mark.parametrize("name", ["adamw", *REFUSED])
def test_a_coordinate_check_measures_every_parametrization_that_the_optimizer_accepts(
  name, config_file, inside, monkeypatch
):
  """The reasons against the others are printed first. The slow measurement is replaced by a stub."""
  measured = []

  def check(configs, sizes, steps, seeds):
    measured.extend(config.optim.parametrization for config in configs)
    return coordinates.Check(tuple(sizes), {"block": np.ones((3, 5))}, {"block": np.zeros(5)})

  monkeypatch.setattr(coordinates, "check", check)
  call = ("plan", f"--config={config_file}", "--coordinate-check", f"--config.optim.name={name}")
  code, out, err = inside(*call, "--json")
  assert code == 0, err
  kinds = ("standard",) if name in REFUSED else optim.parametrization.PARAMETRIZATIONS
  assert tuple(dict.fromkeys(measured)) == kinds
  refused = json.loads(out)["refused"]
  assert set(refused) == set(optim.parametrization.PARAMETRIZATIONS) - set(kinds)
  assert all(f"no rule for {name}" in reason for reason in refused.values())
  if name in REFUSED:  # a config with a refused parametrization is an error
    measured.clear()
    code, _, err = inside(*call, "--config.optim.parametrization=mup", "--config.optim.base=('model.width=8',)")
    assert (code, measured) == (2, [])
    assert f"mup has no rule for {name}" in err
