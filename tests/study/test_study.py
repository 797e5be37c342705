"""A small study: planned, sealed before its test, never run twice, and unchanged by kills."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import msgspec
import pytest

from bigmodel import record, study
from bigmodel.cli import main
from bigmodel.config import load_module
from bigmodel.designs.design import tokens_of
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.laws import facts, forecast, seals
from bigmodel.study import Grid, IsoFlop, Ladder, Listed, Scan, Study, Target, target
from bigmodel.study.fits import fit_study
from bigmodel.train.stop import StopRequest

CONFIG = """
from bigmodel.study import IsoFlop, Scan, Study, Target, default_config
SIZES = [{{"model.width": w, "model.head_size": w // 2}} for w in (8, 12, 16)]
BUDGETS = (1e8, 2e8, 4e8)

def get_config(arg=None):
  config = default_config()
  config.data.name, config.data.path, config.data.heldout_fraction = "text_files", {path!r}, 0.2
  config.data.context, config.data.repeat = 32, True
  config.model.layers, config.model.heads, config.model.activation = 1, 2, "relu2"
  config.train.batch_size, config.train.checkpoint_every, config.eval.tokens = 4, 25, 2048
  config.parallel.data = 2
  return config

def settings(params, tokens):
  return {{"optim.lr": 0.01}}

def get_study(config):
  return Study(
    name="small", question="Does it work?", design=IsoFlop(BUDGETS, SIZES, ratios=(0.1, 30)), settings=settings,
    seeds=3, scan=Scan((0.5, 2.0), ((BUDGETS[0], 1),)), target=Target(8 * BUDGETS[-1], SIZES[1:]),
  )
"""


def command(folder, *arguments):
  devices = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2")}
  return subprocess.Popen(
    [sys.executable, "-m", "bigmodel.cli", *arguments, f"--config={folder / 'config.py'}", "--json"],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | devices,
  )  # fmt: skip


def finish(process):
  out, err = process.communicate()
  assert process.returncode == 0, err
  return json.loads(out)


@pytest.fixture(scope="module")
def folder(corpus_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  (folder / "config.py").write_text(CONFIG.format(path=str(corpus_dir / "*.jsonl")))
  return folder


@pytest.fixture(scope="module")
def finished(folder):
  """Returns the folder with a finished study in `whole`, and its report; this process then has two devices."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "device_count", lambda: 2)
    with contextlib.redirect_stdout(io.StringIO()) as out:
      code = main.main(["study", f"--workdir={folder / 'whole'}", f"--config={folder / 'config.py'}", "--json"])
    assert code == 0
    yield folder, json.loads(out.getvalue())


def results(workdir):
  return {r.run_id: (r.result_sha256, r.params_sha256) for r in record.collect(workdir)}


def test_the_report_has_all_fields_of_the_schema(finished):
  folder, report = finished
  assert report == read_json(folder / "whole" / "report.json")
  assert {"study", "runs", "cost", "laws", "forecast", "noise_floor", "optimum"} <= set(report)
  assert {"expected_seconds", "actual_seconds", "flops"} <= set(report["cost"])
  for law in report["laws"]:
    assert {"name", "convention", "params", "intervals"} <= set(law)
    assert set(law["intervals"]) == set(law["params"])
  assert {"sealed_at", "sha256", "target", "predicted", "interval90", "actual", "inside"} <= set(report["forecast"])
  assert {"C", "N", "D", "N_interval90", "D_interval90"} <= set(report["optimum"][0])
  assert report["noise_floor"]["runs"] == 3
  (scan,) = report["scans"]
  assert scan["rule"] == 0.01
  assert scan["rates"] == [0.005, 0.01, 0.02]
  html = (folder / "whole" / "report.html").read_text()
  assert all(r["run_id"] in html for r in report["runs"])
  tags = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL) + "".join(re.findall(r"<script[^>]*>", html))
  assert not re.findall(r'(?:src|href)="(?!data:)', tags)


def test_the_forecast_was_sealed_before_its_run_and_the_run_carries_the_seal(finished):
  folder, report = finished
  forecast = report["forecast"]
  run = folder / "whole" / "runs" / forecast["target"]["run_id"]
  provenance = read_json(run / "provenance.json")
  assert provenance["forecast_sha256"] == forecast["sha256"]
  assert forecast["sealed_at"] < provenance["started_at"]
  assert all(r["ended_at"] < forecast["sealed_at"] for r in report["runs"] if r["roles"] != ["target"])
  assert forecast["target"]["C"] >= 7.5 * max(r["flops_6nd"] for r in report["runs"] if "fit" in r["roles"])
  assert forecast["inside"] == (forecast["interval90"][0] <= forecast["actual"] <= forecast["interval90"][1])


def test_the_study_and_the_command_give_the_same_forecast(finished, tmp_path, capsys):
  """The same runs give the same laws and weights, and the same forecast of the target."""
  _, report = finished
  sealed = report["forecast"]
  assert set(sealed["forecaster"]["weights"]) == set(forecast.LAWS)
  lines = [
    f"{run['params_active']},{run['tokens']},{run['loss_eval']!r}"
    for run in report["runs"]
    if "fit" in run["roles"] and run["status"] == "finished"
  ]
  (tmp_path / "points.csv").write_text("\n".join(["n,d,loss", *lines]))
  at = f"--at={sealed['target']['N']},{sealed['target']['D']}"
  assert main.main(["forecast", str(tmp_path / "points.csv"), "--n=n", "--d=d", at, "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  assert said["forecaster"]["weights"] == pytest.approx(sealed["forecaster"]["weights"], rel=1e-6)
  assert said["rows"][0]["predicted"] == pytest.approx(sealed["predicted"], rel=1e-6)
  assert said["forecaster"]["version"] == sealed["forecaster"]["version"]
  assert {law["name"] for law in report["laws"]} == {*forecast.LAWS, "isoflop"}


def test_a_forecast_of_an_earlier_version_is_still_scored_and_reported(finished, tmp_path):
  """Earlier seals name a law and no forecaster."""
  folder, report = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder / "whole", copy)
  path = copy / "forecasts" / "target.json"
  old = {name: x for name, x in read_json(path).items() if name not in ("forecaster", "parts", "sha256", "sealed_at")}
  old |= {"law": "chinchilla", "parts": {"bootstrap": 0.1, "quantile": 2.0}}
  old = seals.seal(facts.from_json(old, facts.Forecast, str(path)), report["forecast"]["sealed_at"])
  seals.write(path, old)
  run = copy / "runs" / old.forecast.target.run_id / "provenance.json"
  write_json(run, read_json(run) | {"forecast_sha256": old.sha256})
  scored = target.score(copy)
  assert scored is not None
  assert scored["actual"] == report["forecast"]["actual"]
  study.write_report(copy)
  assert "by law chinchilla" in (copy / "report.html").read_text()


def test_a_studys_law_may_be_a_users_function(finished, tmp_path):
  """A user's law is one function in a file; it is fitted and reported, and forecasts the target."""
  folder, _ = finished
  (tmp_path / "mine.py").write_text(
    "from bigmodel.laws.forms import POSITIVE, decay, law\n"
    "@law('mine', 'here', grid={'k': (0.1, 0.3)}, linear=('low', 'a'), low=POSITIVE, a=POSITIVE, k=(0, 2))\n"
    "def of_compute(p, C):\n"
    "  return p.low + p.a * decay(C, p.k)\n"
  )
  copy, name = tmp_path / "copy", f"{tmp_path / 'mine.py'}:of_compute"
  shutil.copytree(folder / "whole", copy)
  (copy / "forecasts" / "target.json").unlink()
  module, _ = load_module(str(folder / "config.py"))
  config = module.get_config()
  prepared = study.prepare(config, dataclasses.replace(module.get_study(config), laws=(name,)), copy)
  write_json(copy / "study.json", msgspec.to_builtins(prepared.about()))
  fits = fit_study(copy)
  assert [law.name for law in fits.laws] == ["mine"]
  assert [one.law for one in fits.optimum] == ["best run, enlarged: no size is the best by these laws"]
  sealed = target.seal_forecast(prepared, fits).forecast
  assert sealed.forecaster
  assert sealed.forecaster.weights == pytest.approx({"mine": 1.0})
  assert 0 < sealed.interval90[0] < sealed.predicted < sealed.interval90[1]


def test_an_unsuitable_law_is_refused_before_anything_runs(config, tmp_path):
  design = IsoFlop((1e8, 2e8), [{"model.width": width} for width in (16, 32, 48)])
  for name, message in (
    ("power", "get_study: laws: law power is of x"),
    ("chinchila", "no law 'chinchila' .did you mean 'chinchilla'"),
  ):
    with pytest.raises(UserError, match=message):
      study.prepare(config, Study("s", "?", design, laws=(name,)), tmp_path)


def test_a_run_that_carries_another_seal_is_not_scored(finished, tmp_path):
  folder, report = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder / "whole", copy)
  path = copy / "runs" / report["forecast"]["target"]["run_id"] / "provenance.json"
  write_json(path, read_json(path) | {"forecast_sha256": "0" * 64})
  with pytest.raises(UserError, match="does not carry the seal"):
    target.score(copy)


def test_the_ledger_scores_a_study_and_what_is_kept_of_it(finished, tmp_path, capsys):
  folder, report = finished
  page, kept = tmp_path / "page.html", tmp_path / "kept"
  assert main.main(["ledger", str(folder / "whole"), f"--page={page}", f"--keep={kept}", "--json"]) == 0
  (one,) = json.loads(capsys.readouterr().out)["forecasts"]
  forecast = report["forecast"]
  assert one["actual"] == forecast["actual"]
  assert one["inside"]["interval90"] == forecast["inside"]
  assert one["intervals"]["interval90"] == forecast["interval90"]
  assert set(one["intervals"]) == {"interval50", "interval80", "interval90", "interval95"}
  assert one["fitted"] == sum("fit" in run["roles"] for run in report["runs"])
  assert one["distance"] == pytest.approx(8, rel=0.05)
  assert "Calibration" in page.read_text()
  assert main.main(["ledger", str(kept), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["forecasts"] == [one]


def test_the_fitted_runs_can_be_trained_before_the_forecast_is_sealed(finished, tmp_path, capsys, inside):
  folder, report = finished
  copy, run_id = tmp_path / "copy", report["forecast"]["target"]["run_id"]
  shutil.copytree(folder / "whole", copy)
  shutil.rmtree(copy / "forecasts")
  shutil.rmtree(copy / "runs" / run_id)
  command = ["study", f"--workdir={copy}", f"--config={folder / 'config.py'}", "--json"]
  assert main.main([*command, "--no-target"]) == 0
  assert json.loads(capsys.readouterr().out)["forecast"] is None
  assert not (copy / "forecasts").exists()
  assert main.main(["ledger", str(copy), "--json"]) == 0
  (without,) = json.loads(capsys.readouterr().out)["without"]
  assert without["why"] == "no sealed forecast"
  assert main.main(command) == 0
  assert json.loads(capsys.readouterr().out)["forecast"]["actual"] == report["forecast"]["actual"]


def test_the_plan_fixes_which_runs_share_a_program(finished):
  folder, _ = finished
  plan = read_json(folder / "whole" / "plan.json")
  roles = {run["run_id"]: run["roles"] for run in plan["runs"]}
  packs = [[roles[i] for i in group["run_ids"]] for group in plan["groups"] if len(group["run_ids"]) > 1]
  assert any(["seed"] in pack for pack in packs)
  assert any(["scan"] in pack for pack in packs)
  assert sorted(i for group in plan["groups"] for i in group["run_ids"]) == sorted(roles)


def test_rerunning_the_command_trains_nothing(finished, inside):
  folder, report = finished
  before = {p: p.stat().st_mtime_ns for p in (folder / "whole" / "runs").rglob("*") if p.is_file()}
  code, out, err = inside("study", f"--workdir={folder / 'whole'}", f"--config={folder / 'config.py'}", "--json")
  assert code == 0, err
  again = json.loads(out)
  assert {p: p.stat().st_mtime_ns for p in (folder / "whole" / "runs").rglob("*") if p.is_file()} == before
  assert again["forecast"] == report["forecast"]
  assert again["laws"] == report["laws"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 5])
def test_a_killed_study_equals_an_undisturbed_one(folder, times):
  if not (folder / "calm").exists():
    finish(command(folder, "study", f"--workdir={folder / 'calm'}"))
  rng, kills = random.Random(1), 0
  workdir = folder / f"killed{times}"
  while True:
    process = command(folder, "study", f"--workdir={workdir}")
    if kills == times:
      break
    while process.poll() is None and not (workdir / "plan.json").exists():
      time.sleep(0.02)
    wait = time.monotonic() + rng.uniform(1.0, 7.0)
    while process.poll() is None and time.monotonic() < wait:
      time.sleep(0.02)
    if process.poll() is not None:
      break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += 1
  finish(process)
  assert kills >= min(times, 3)
  assert results(workdir) == results(folder / "calm")
  groups = lambda name: [g["run_ids"] for g in read_json(folder / name / "plan.json")["groups"]]
  assert groups(workdir.name) == groups("calm")


def test_added_runs_are_accepted_and_changed_ones_refused(finished, tmp_path, inside):
  import shutil

  folder, _ = finished
  shutil.copytree(folder / "whole", tmp_path / "work")
  text = (folder / "config.py").read_text()
  (tmp_path / "config.py").write_text(
    text.replace("BUDGETS = (1e8, 2e8", "BUDGETS = (5e7, 1e8, 2e8").replace("((BUDGETS[0]", "((BUDGETS[1]")
  )
  before = results(tmp_path / "work")
  code, out, err = inside("study", f"--workdir={tmp_path / 'work'}", f"--config={tmp_path / 'config.py'}", "--json")
  assert code == 0, err
  grown = json.loads(out)
  after = results(tmp_path / "work")
  assert before.items() < after.items()
  assert grown["forecast"]["sealed_at"] < max(r["started_at"] for r in grown["runs"])
  for change in (("(1e8, 2e8, 4e8)", "(2e8, 4e8)"), ("heads, config", "heads, config.optim.beta1, config")):
    changed = text.replace(*change).replace(
      '= 1, 2, "relu2"', '= 1, 2, 0.8, "relu2"' if "beta1" in change[1] else '= 1, 2, "relu2"'
    )
    assert changed != text
    (tmp_path / "config.py").write_text(changed)
    code, _, err = inside("study", f"--workdir={tmp_path / 'work'}", f"--config={tmp_path / 'config.py'}")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
  assert results(tmp_path / "work") == after


def small_study(config, design, **fields):
  return config, Study(name="small", question="?", design=design, laws=(), **fields)


def run(config, the_study, workdir):
  prepared = study.prepare(config, the_study, workdir)
  return study.run_study(prepared, True, StopRequest())


def test_diverged_and_failed_runs_become_records_and_do_not_stop_others(config, tmp_path, monkeypatch):
  from bigmodel.workers import execute

  design = Grid({"optim.lr": (1e30, 0.01, 0.02)})
  config.optim.clip, config.optim.warmup, config.train.steps = 1e30, 0.0, 10
  config.train.tokens = 0
  real = execute.train_runs

  def failing(runs, *rest, **named):
    if any(r.config.optim.lr == 0.02 for r in runs):
      raise RuntimeError("the device fell over\nwith a second line")
    return real(runs, *rest, **named)

  monkeypatch.setattr(execute, "train_runs", failing)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  report = run(config, Study(name="s", question="?", design=design, laws=()), tmp_path)
  by_rate = {r["learning_rate"]: r for r in report["runs"]}
  assert by_rate[1e30]["status"] == "diverged"
  assert by_rate[0.01]["status"] == "finished"
  assert by_rate[0.02]["status"] == "failed"
  assert by_rate[0.02]["error"] == "RuntimeError: the device fell over"
  monkeypatch.setattr(execute, "train_runs", real)
  prepared = study.prepare(config, Study(name="s", question="?", design=design, laws=()), tmp_path)
  again = study.run_study(prepared, True, StopRequest(), retry=True)
  by_rate = {r["learning_rate"]: r for r in again["runs"]}
  assert by_rate[0.02]["status"] == "finished"
  assert len(list(Path(tmp_path).glob("runs/*/attempts/000.json"))) == 2


@pytest.mark.slow
def test_a_diverged_scan_is_reported_and_stops_nothing(config, tmp_path):
  config.train.steps, config.train.batch_size, config.data.repeat = 0, 8, True
  config.optim.clip, config.optim.warmup = 1e30, 0.0
  sizes = [{"model.width": w, "model.head_size": w // 2} for w in (8, 12, 16)]
  design = IsoFlop((4e7, 8e7), sizes)
  settings = lambda params, tokens: {"optim.lr": 0.01}
  report = run(config, Study("s", "?", design, settings, scan=Scan((1e32, 2.0), ((4e7, 1),))), tmp_path)
  (scan,) = report["scans"]
  assert scan["without_loss"] == 1
  assert scan["rule"] == 0.01
  assert len(scan["rates"]) == 2
  assert report["laws"]


def test_data_are_not_an_axis(config, tmp_path):
  design = Grid({"data.tokenizer": ("bytes", "bpe")})
  with pytest.raises(UserError, match=r"data\.tokenizer is not an axis"):
    study.prepare(config, Study("s", "?", design, laws=()), tmp_path)


def test_typos_in_a_config_file_are_refused(config, tmp_path):
  config.optim.lrr = 0.1
  with pytest.raises(UserError, match=r"config\.optim\.lrr: no such field \(did you mean 'optim\.lr'"):
    study.prepare(config, Study("s", "?", Grid({"seed": (0, 1)}), laws=()), tmp_path)


def test_designs_return_the_runs_that_they_describe(config, tmp_path):
  counts = study.prepare(config, Study("s", "?", Listed([{}]), laws=()), tmp_path).counts_of
  sizes = [{"model.width": w, "model.head_size": w // 2} for w in (8, 16, 32)]
  iso = IsoFlop((1e9, 2e9), sizes, ratios=(1, 40), convention="flops_exact").runs(counts)
  for one in iso:
    own = counts({k: v for k, v in one.overrides.items() if k.startswith("model")})
    tokens = tokens_of(one.overrides)
    assert own.flops(tokens)["flops_exact"] == pytest.approx(one.budget, rel=1e-3)
    assert 1 <= tokens / own.params_total <= 40
  ladder = Ladder(sizes, (10, 20)).runs(counts)
  assert [tokens_of(r.overrides) / counts(s).params_total for s, r in zip(sizes, ladder[::2], strict=True)] == [10] * 3
  grid = Grid({"model.width": (8, 16), "optim.lr": (0.1, 0.2, 0.3)}).runs(counts)
  assert len({tuple(r.overrides.items()) for r in grid}) == 6


def test_a_target_that_is_too_close_is_refused(config, tmp_path):
  sizes = [{"model.width": w, "model.head_size": w // 2} for w in (8, 12, 16)]
  config.train.steps, config.data.repeat = 0, True
  near = Study("s", "?", IsoFlop((1e8, 2e8), sizes), target=Target(1e9, sizes))
  with pytest.raises(UserError, match=r"5\.0x the largest.*8x"):
    study.make_plan(study.prepare(config, near, tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_law_with_more_parameters_than_runs_is_refused(config, tmp_path):
  config.train.steps = 0
  few = Study("s", "?", IsoFlop((1e8,), [{"model.width": 8}, {"model.width": 16}]), scan=Scan((2.0,), ()))
  with pytest.raises(UserError, match="5 parameters and 2 fitted runs"):
    study.prepare(config, few, tmp_path)
