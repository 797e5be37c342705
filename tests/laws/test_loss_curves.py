"""Laws of the learning-rate schedule: sums are exact, fits find the truth, forecasts hold, bad input is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bigmodel
from bigmodel import study
from bigmodel.cli import main
from bigmodel.config import flatten, load_module
from bigmodel.errors import UserError
from bigmodel.files import write_json, write_jsonl
from bigmodel.laws.schedules import curves, decays, fitting, forecast, laws, notation, reading, runs, sums
from bigmodel.laws.schedules.curves import Curve
from bigmodel.study import Grid, Study
from bigmodel.study import curves as study_curves
from bigmodel.train import metrics
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.run import Run
from bigmodel.train.stop import StopRequest

ROOT = Path(__file__).parents[2]
PEAK, WARMUP = 2e-3, 40
TRUTH = {"L0": 2.0, "A": 0.3, "B": 0.2, "alpha": 0.5, "memory": 0.02}


def rates_of(kind, steps):
  at = np.arange(steps + 1)
  shares = {
    "constant": np.ones(steps + 1),
    "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * np.clip((at - WARMUP) / (steps - WARMUP), 0, 1))),
    "drop": np.where(at >= steps // 2, 0.3, 1.0),
    "wsd": 1 - 0.9 * np.clip((at / steps - 0.8) / 0.2, 0, 1),
    "to zero": np.clip(2 * (1 - at / (0.9 * steps)), 0, 1),
    "cycles": 0.55 + 0.45 * np.sin(at / 37.0),
  }[kind]
  return PEAK * np.minimum(shares, at / WARMUP)


def made(kind, steps=1000, noise=0.0, seed=0, every=10, law=laws.progress_annealing, params=TRUTH):
  """A curve that follows a law."""
  rates, at = rates_of(kind, steps), np.arange(every, steps + 1, every)
  loss = fitting.predict(law, law.theta(params), sums.sums(rates, at, PEAK, 1000.0))
  loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(at)))
  return Curve(kind, at, loss, rates)


def written(path, made_curves, head="curve,step,lr,loss"):
  rows = [
    f"{curve.name},{step},{curve.rates[step]},{loss}"
    for curve in made_curves
    for step, loss in zip(curve.steps, curve.loss, strict=True)
  ]
  path.write_text("\n".join([head, *rows]) + "\n")
  return str(path)


@pytest.mark.parametrize("kind", ["constant", "cosine", "drop", "wsd", "to zero", "cycles"])
def test_sums_of_few_terms_equal_sums_over_all_steps(kind):
  """Within 1e-5 of the changes of the rate, which is far below the noise of any loss; from the warm-up on."""
  rates, at = rates_of(kind, 3000), np.array([1, 7, 64, 500, 1501, 2048, 2999, 3000])
  found = sums.sums(rates, at, PEAK, 3000.0)
  u = rates / PEAK
  for name, function in {
    "power": lambda rate, after, since: 1 - (1 + 0.1 * np.maximum(rate, sums.TINY) ** -0.6 * after) ** -0.6,
    "memory": lambda rate, after, since: 1 - np.exp(-since / 100),
    "short memory": lambda rate, after, since: 1 - np.exp(-since / 5),
  }.items():
    exact = []
    for t in at:
      k = np.arange(curves.rise(rates) + 1, t + 1)
      after = np.array([u[i : t + 1].sum() for i in k])
      exact.append(np.sum((u[k - 1] - u[k]) * function(u[k], after, t - k + 1)))
    ours = np.sum(found.fall * function(found.rate, found.after * 3000, found.since * 3000), axis=1)
    np.testing.assert_allclose(ours, exact, atol=5e-5 * np.abs(np.diff(u)).sum(), err_msg=name)
  np.testing.assert_allclose(found.total * 3000, np.cumsum(u)[at])
  np.testing.assert_allclose(found.progress * 3000, np.cumsum(u**sums.PROGRESS)[at])
  if kind != "cycles":
    assert found.fall.shape[1] < 300


def test_published_parameters_give_published_losses():
  """The multi-power law in the units of its paper, with a plain sum over all steps."""
  L0, A, alpha, B, C, beta, gamma = 3.04045, 0.52469, 0.50787, 363.788, 2.06561, 0.58279, 0.64142
  at = np.arange(2200)
  rates = np.where(at < 1500, 3e-4, 9e-5) * np.minimum(at / 100, 1)
  total, k = np.cumsum(rates), np.arange(1, 2001)
  reduction = 1 - (1 + C * rates[k] ** -gamma * (total[2000] - total[k - 1])) ** -beta
  expected = L0 + A * total[2000] ** -alpha - B * np.sum((rates[k - 1] - rates[k]) * reduction)
  peak, length = 3e-4, 2000.0
  scaled = {
    "L0": L0, "A": A * (peak * length) ** -alpha, "B": B * peak, "alpha": alpha,
    "C": C * peak ** (1 - gamma) * length, "beta": beta, "gamma": gamma,
  }  # fmt: skip
  law = laws.multi_power
  ours = fitting.predict(law, law.theta(scaled), sums.sums(rates, np.array([2000]), peak, length, True))
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def fitted():
  return forecast.fit(three())


def test_a_law_is_found_from_its_curves(fitted):
  """Within what noise of .1% leaves."""
  found = next(fit for fit in fitted.fits if fit.law is laws.progress_annealing)
  assert found.params == pytest.approx(TRUTH, rel=0.15)


def test_other_schedules_are_forecast_within_the_interval(fitted):
  for kind, steps in (("wsd", 1000), ("cosine", 2000), ("constant", 2000)):
    truth = made(kind, steps)
    said = fitted.predict(truth.rates, truth.steps[20:])
    low, high = said.interval(0.9)
    assert np.mean((low <= truth.loss[20:]) & (truth.loss[20:] <= high)) > 0.9, kind
    np.testing.assert_allclose(said.predicted, truth.loss[20:], rtol=5e-3)


def test_intervals_widen_with_level_and_follow_the_noise(fitted):
  truth = made("wsd")
  said = fitted.predict(truth.rates, truth.steps)
  widths = [np.log(high / low)[-1] for low, high in map(said.interval, (0.5, 0.8, 0.9, 0.95))]
  assert (np.diff(widths) > 0).all()
  assert 2 * 1.6e-3 < widths[2] < 2 * 6e-3  # the noise of a row is .1%


def test_the_law_that_is_true_has_the_larger_weight(fitted):
  weights = {fit.law.name: weight for fit, weight in zip(fitted.fits, fitted.weights, strict=True)}
  assert weights["progress_annealing"] > 0.4
  assert forecast.best(fitted).fits[0].backtest == min(fit.backtest for fit in fitted.fits)


def test_the_same_schedule_makes_no_difference(fitted):
  rows = fitted.units.sums(rates_of("cosine", 1000), np.array([500, 1000]))
  difference, sd = fitted.difference(rows, rows.take(np.array([0])))
  assert (difference[0], sd[0]) == (0, 0)
  assert sd[1] > 0


def test_a_curve_far_from_the_law_of_the_others_is_named(fitted):
  assert forecast.outlying(fitted) == []
  broken = [dataclasses.replace(fit, errors=(np.full(9, 0.3), *fit.errors[1:])) for fit in fitted.fits]
  (note,) = forecast.outlying(dataclasses.replace(fitted, fits=tuple(broken)))
  assert "curve constant is far from the law of the others" in note
  assert "30% off" in note


def test_the_loss_falls_under_a_constant_rate():
  """The warm-up is no negative fall, whose effect would be extrapolated."""
  short = [made(kind, 200, 0.05, seed) for seed, kind in enumerate(("constant", "cosine", "constant", "cosine"))]
  said = forecast.fit(short).predict(rates_of("constant", 2000), np.arange(100, 2001, 100)).predicted
  assert (np.diff(said) < 0).all()


def test_a_decay_is_proposed_that_beats_the_usual_ones(fitted):
  proposal = decays.propose(fitted, 1500, WARMUP, [])
  assert all(each.difference >= 0 for each in proposal.usual)
  assert "1.5 times as long as the longest fitted curve" in proposal.warnings[0]
  assert proposal.best.predicted <= min(each.predicted for each in proposal.usual)
  assert proposal.best.final >= 0.99 * fitted.lowest  # no rate below those that were fitted
  cosine = next(each for each in proposal.usual if each.name == "cosine")
  truths = {}
  for name, start, shape in (("best", proposal.best.start, proposal.best.shape), ("cosine", WARMUP, "cosine")):
    at = np.arange(1501)
    done = np.clip((at - start) / (1500 - start), 0, 1)
    rates = PEAK * np.minimum(at / WARMUP, decays.SHAPES[shape](done, proposal.best.final))
    theta = laws.progress_annealing.theta(TRUTH)
    truths[name] = fitting.predict(laws.progress_annealing, theta, sums.sums(rates, at[-1:], PEAK, 1000.0))[0]
  low, high = cosine.difference90
  assert low <= truths["cosine"] - truths["best"] <= high


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("cosin:steps=10", "'cosin' is no schedule .did you mean 'cosine'?"),
    ("cosine", "lacks steps=NUMBER"),
    ("cosine:steps=1.5", "steps=1.5 is not a whole number"),
    ("cosine:steps=100,final=3e-5", "for the rate 3e-05 write end=3e-05"),
    ("cosine:steps=100,final=2", "final=2 is not a share of the peak"),
    ("cosine:steps=100,final=.1,end=.1", "give one"),
    ("cosine:steps=100,end=1", "end=1 is not a rate from 0 to the peak"),
    ("constant:steps=10,decay=.1", "constant has no decay"),
    ("wsd:steps=100,decay=200", "decay=200 is longer than the run"),
    ("wsd:steps=100,foo=1", "'foo=1' is not KEY=NUMBER"),
    ("wsd:steps=100,steps=100", "steps is given twice"),
    ("wsd:steps=nan", "steps=nan is not a finite number"),
  ],
)
def test_a_schedule_in_one_word_is_refused(text, message):
  with pytest.raises(UserError, match=message):
    notation.parse(text, PEAK, WARMUP)


def test_a_schedule_in_one_word_has_the_rates_of_a_run():
  named = notation.parse("wsd:steps=1000,decay=.2,end=2e-4", PEAK, WARMUP)
  rates = named.rates()
  assert len(rates) == 1001
  assert rates[0] == 0
  np.testing.assert_allclose(rates[[1, 20, WARMUP, 800]], PEAK * np.array([1 / 40, 0.5, 1, 1]), rtol=1e-6)
  np.testing.assert_allclose(rates[1000], 2e-4, rtol=0.05)
  assert notation.parse(str(named), 1.0, 0) == named


def test_a_schedule_is_known_between_its_rows():
  """Drops of a rate that is constant before and after happen at the row that shows them first; the rest is linear."""
  rates = curves.schedule(np.array([10, 20, 30, 40]), np.array([1.0, 1.0, 0.5, 0.5]))
  np.testing.assert_allclose(rates[[0, 5, 10, 29, 30, 40]], [0, 0.5, 1, 1, 0.5, 0.5])
  rates = curves.schedule(np.array([10, 20, 30]), np.array([1.0, 0.8, 0.6]), warmup=5)
  np.testing.assert_allclose(rates[[1, 5, 9, 15, 25]], [0.2, 1, 1, 0.9, 0.7])


def three():
  return [made(kind, noise=1e-3, seed=i) for i, kind in enumerate(("constant", "cosine", "drop"))]


BAD = {
  "no rate": (lambda t: t.replace("lr,", "rate,"), "no column 'lr' for --lr"),
  "no curve": (lambda t: t.replace("curve,", "run,"), "no column 'curve' for --curve"),
  "backwards": (lambda t: t.replace("cosine,30,", "cosine,15,"), "row 104: step 15 follows step 20"),
  "twice": (lambda t: t.replace("cosine,30,", "cosine,20,"), "row 104: step 20 follows step 20"),
  "half a step": (lambda t: t.replace("cosine,30,", "cosine,30.5,"), "row 104: 30.5 is not a whole number"),
  "negative rate": (lambda t: t.replace("cosine,30,", "cosine,30,-"), "row 104: -0.0015 is not a learning rate"),
  "negative loss": (lambda t: t.replace(",0.002,", ",0.002,-"), "is not a positive loss"),
  "text": (lambda t: t.replace("cosine,30,", "cosine,30,x"), "is not a learning rate"),
  "one curve": (lambda t: "\n".join(t.split("\n")[:101]), "and there is 1 .constant."),
  "gap": (
    lambda t: "\n".join(line for line in t.split("\n") if not line.startswith(tuple(f"cosine,{s}" for s in "3456"))),
    "no rows between steps 290 and 700, where the learning rate goes from",
  ),
  "all rise": (
    lambda t: "curve,step,lr,loss\n" + "".join(f"{c},{s},{s}e-5,3\n" for c in "ab" for s in range(1, 30)),
    "its learning rate rises up to the last of its 29 losses",
  ),
  "few": (lambda t: "\n".join(t.split("\n")[k] for k in (0, 40, 100, 150, 200)), "has 5 parameters and the curves"),
  "same": (
    lambda t: "curve,step,lr,loss\n" + "".join(f"{c},{s},{1 / (s + 9)},3\n" for c in "ab" for s in range(1, 30)),
    "have one schedule",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_curves_are_refused_in_one_line(tmp_path, capsys, name):
  change, message = BAD[name]
  path = Path(written(tmp_path / "curves.csv", three()))
  path.write_text(change(path.read_text()))
  seal = tmp_path / "sealed.json"
  assert main.main(["forecast", str(path), "--schedule=cosine:steps=2000", f"--seal={seal}"]) == 2
  said = capsys.readouterr().err.strip()
  assert "\n" not in said
  assert message.split(" .")[0] in said
  assert not seal.exists()


def test_constant_rates_cannot_say_what_a_decay_does(tmp_path, capsys):
  both = [made("constant"), Curve("other", *(getattr(made("constant", 500), f) for f in ("steps", "loss", "rates")))]
  path = written(tmp_path / "c.csv", both)
  assert main.main(["forecast", path, "--schedule=cosine:steps=2000"]) == 2
  assert "what a decay does cannot be identified; add a curve with a decay" in capsys.readouterr().err
  assert main.main(["design", path, "--schedule", "--steps=2000"]) == 2
  assert "what a decay does cannot be identified; add a curve with a decay" in capsys.readouterr().err
  assert main.main(["forecast", path, "--schedule=constant:steps=2000", "--json"]) == 0
  made_forecast = json.loads(capsys.readouterr().out)
  truth = made("constant", 2000).loss[-1]
  assert made_forecast["rows"][0]["predicted"] == pytest.approx(truth, rel=5e-3)


def test_a_higher_peak_is_refused_and_far_schedules_are_pointed_out(fitted):
  with pytest.raises(UserError, match=r"its peak of 0.004 is above the highest rate of the fitted curves, 0.002"):
    forecast.check(fitted, 2 * rates_of("cosine", 1000), "--schedule")
  notes = forecast.check(fitted, rates_of("to zero", 5000), "--schedule")
  assert any("below the lowest fitted rate" in note for note in notes)
  assert any("5.0 times as long as the longest fitted curve" in note for note in notes)


def test_a_sealed_forecast_of_a_curve_is_scored(tmp_path, capsys):
  path = written(tmp_path / "curves.csv", three())
  seal = tmp_path / "sealed.json"
  asked = ["forecast", path, "--schedule=wsd:steps=1000,end=2e-4", "--at=500", "--at=1e3", f"--seal={seal}", "--json"]
  asked.append("--law=progress_annealing")
  assert main.main(asked) == 0
  document = json.loads(capsys.readouterr().out)
  assert [row["x"] for row in document["rows"]] == [500, 1000]
  assert document["schedule"] == "wsd:steps=1000,warmup=40,peak=0.002,final=0.1,decay=200"
  assert document["curves"] == ["constant", "cosine", "drop"]
  truth = written(tmp_path / "truth.csv", [made("wsd")])
  assert main.main(["forecast", truth, "--x=step", f"--score={seal}", "--json"]) == 0
  rows = json.loads(capsys.readouterr().out)["rows"]
  assert [abs(row["log_error"]) < 5e-3 for row in rows] == [True, True]


def test_curves_of_runs_are_read_from_their_metrics(tmp_path):
  """A run that has ended and one that is under way; rows without the loss only give the schedule."""
  for curve in (made("constant"), made("wsd", 500)):
    rows = [
      {"step": int(step), "lr": float(curve.rates[step]), "loss": loss}
      | ({"loss_eval": loss} if step % 100 == 0 else {})
      for step, loss in zip(curve.steps, curve.loss, strict=True)
    ]
    folder = tmp_path / curve.name
    folder.mkdir()
    half = len(rows) // 2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:half]))
    (folder / "metrics").mkdir()
    (folder / "metrics" / "0000000500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[half:]))
  folders = [tmp_path / "constant", tmp_path / "wsd"]
  read = runs.read(folders)
  assert [len(curve.steps) for curve in read] == [100, 50]
  np.testing.assert_allclose(read[1].rates, made("wsd", 500).rates, atol=1e-3 * PEAK)
  assert [len(curve.steps) for curve in runs.read(folders, runs.EVALUATED)] == [10, 5]
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="no learning rate"):
    runs.read([tmp_path / "empty"])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["25M", "100M"])
def test_published_loss_curves_are_forecast(scaling_data, size):
  """Six curves from three: errors at or below the published ones, and 85% to 95% of points in 90% intervals."""
  if not (scaling_data / "loss_curves").is_dir():
    pytest.skip("no published loss curves")
  loss_curves, _ = load_module(str(ROOT / "experiments" / "loss_curves.py"))
  found = loss_curves.read(scaling_data)[size]
  three_curves, six = loss_curves.split(found)
  _, published, _ = loss_curves.PUBLISHED[size]
  assert loss_curves.with_published(size, six)[0] == pytest.approx(published, abs=2e-5)
  forecaster = forecast.fit(three_curves)
  assert loss_curves.errors_of(forecaster, six)[0] <= published
  of_points, of_curves, _ = loss_curves.covered(forecaster, six, 0.9)
  assert 0.85 <= of_points <= 0.95
  assert 0.85 <= of_curves <= 0.95


def test_curves_in_other_dialects_and_with_only_rates(tmp_path):
  """Semicolons and decimal commas; a row without a loss gives a rate."""
  path = tmp_path / "c.csv"
  path.write_text("run;t;rate;nll\na;10;0,001;3,5\na;20;0,001;\na;30;0,0005;3,25\n")
  columns = reading.Columns("run", "t", "rate", "nll")
  (curve,) = reading.read(str(path), columns).groups[""]
  np.testing.assert_array_equal(curve.steps, [10, 30])
  np.testing.assert_array_equal(curve.loss, [3.5, 3.25])
  np.testing.assert_allclose(curve.rates[[20, 30]], [1e-3, 5e-4])


PLAIN = b"curve,step,lr,loss\na,10,1e-3,3.5\na,20,1e-3,3.4\na,30,5e-4,3.3\nb,10,1e-3,3.5\nb,20,1e-3,\n"
VALID = (PLAIN, PLAIN.replace(b",", b";"), PLAIN.decode().encode("utf-16"))


@st.composite
def mutated(draw):
  content = bytearray(draw(st.sampled_from(VALID)))
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(content)))
    change = draw(st.sampled_from(("flip", "cut", "insert", "double")))
    if change == "flip" and at < len(content):
      content[at] ^= 1 << draw(st.integers(0, 7))
    elif change == "cut":
      del content[at : at + draw(st.integers(1, 20))]
    elif change == "insert":
      content[at:at] = draw(
        st.binary(min_size=1, max_size=4) | st.sampled_from((b"9", b"-", b"e9", b"\n", b",", b"nan"))
      )
    else:
      content[at:at] = content[at : at + 10]
  return bytes(content)


def outcome(function):
  """What a function returns, or the message with which it refuses."""
  try:
    return function()
  except UserError as error:
    return str(error)


@pytest.mark.fuzz
@given(content=st.binary(max_size=200) | mutated())
def test_any_bytes_are_curves_or_refused_in_one_line(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / "any.csv"
  path.write_bytes(content)
  for found in (
    outcome(lambda: reading.read(str(path), reading.Columns())),
    outcome(lambda: reading.schedule(str(path), reading.Columns())),
  ):
    assert not isinstance(found, str) or "\n" not in found


KEYS = st.sampled_from(notation.KEYS)
NUMBERS = st.sampled_from(("0", "1", "-1", "10", "1e3", "1e9", "0.2", "nan", "inf", "x", ""))
PARTS = st.lists(st.builds("{}={}".format, KEYS, NUMBERS), max_size=4).map(",".join)


@pytest.mark.fuzz
@given(text=st.text(max_size=20) | st.builds("{}:steps=50,{}".format, st.sampled_from(("wsd", "cosine")), PARTS))
def test_any_text_is_a_schedule_or_refused_in_one_line(text):
  named = outcome(lambda: notation.parse(text, PEAK, WARMUP))
  if isinstance(named, str):
    assert len(named.splitlines()) == 1
  else:
    assert 1 <= named.steps <= notation.MOST_STEPS
    assert 0 <= named.final <= 1
    assert named.decay <= named.steps
    assert np.isfinite(named.rates()).all() or named.steps > 1000


def with_sums(path, made_curves, tokens=512, flops=3e6):
  """A CSV of curves with the tokens and the FLOPs up to each row."""
  lines = Path(written(path, made_curves)).read_text().split()
  rows = [f"{line},{int(line.split(',')[1]) * tokens},{int(line.split(',')[1]) * flops}" for line in lines[1:]]
  path.write_text("\n".join([f"{lines[0]},tokens,flops", *rows]) + "\n")
  return str(path)


def test_a_budget_of_tokens_or_compute_is_a_number_of_steps(tmp_path, capsys):
  path = with_sums(tmp_path / "curves.csv", three())

  def proposal(*options):
    assert main.main(["design", path, "--schedule", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)

  by_steps = proposal("--steps=1500")
  assert (by_steps["tokens"], by_steps["flops"]) == (None, None)
  for options in (["--tokens=768100", "--d=tokens"], ["--target=4.5e9", "--c=flops"]):
    ours = proposal(*options)
    assert (ours["steps"], ours["best"]) == (1500, by_steps["best"])
  assert ours["flops"] == pytest.approx(4.5e9)


BUDGETS = {
  "none": ([], "needs one budget, --steps=N, --tokens=N or --target=FLOPS; none is given"),
  "two": (["--steps=10", "--tokens=10"], "not --steps and --tokens"),
  "no column of tokens": (["--tokens=1e6"], "--tokens: the tokens of a step are unknown; name their column with --d"),
  "no column of FLOPs": (["--target=1e9", "--d=tokens"], "--target: the FLOPs of a step are unknown"),
  "a column without use": (["--steps=10", "--d=tokens"], "--d: is for --tokens or --target"),
  "not a sum": (["--tokens=1e6", "--d=loss*1000"], "tokens per step range from"),
  "no such column": (["--tokens=1e6", "--d=token"], "no column 'token' for --d (did you mean 'tokens'"),
  "less than a step": (["--tokens=10", "--d=tokens"], "--tokens: 10 is less than the 512 of one step"),
  "only the warm-up": (["--tokens=5120", "--d=tokens"], "a run of 10 steps cannot be designed"),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_bad_budgets_are_refused_in_one_line(tmp_path, capsys, name):
  options, message = BUDGETS[name]
  path = with_sums(tmp_path / "curves.csv", three()[:2])
  assert main.main(["design", str(path), "--schedule", *options]) == 2
  said = capsys.readouterr().err.strip()
  assert "\n" not in said
  assert message in said


def folder_of_runs(root, config, runs_, noise=1e-3):
  """A study's folder whose runs follow a law: `runs_` are {name: (schedule, steps, peak, changes)}."""
  (root / "study.json").parent.mkdir(parents=True, exist_ok=True)
  (root / "study.json").write_text("{}")
  for seed, (name, (schedule, steps, peak, changes)) in enumerate(runs_.items()):
    one = config.copy_and_resolve_references()
    one.optim.update(schedule=schedule, lr=peak, warmup=WARMUP / steps)
    one.train.update(steps=steps, tokens=0, log_every=10)
    one.update_from_flattened_dict(changes)
    write_json(root / "runs" / name / "config.json", flatten(one))
    rates, at = study_curves.rates(one), np.arange(10, steps + 1, 10)
    law = laws.progress_annealing
    loss = fitting.predict(law, law.theta(TRUTH), sums.sums(rates, at, PEAK, 1000.0))
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(at)))
    rows = [
      {
        "step": int(step),
        "lr": float(rates[step]),
        "loss": each,
        **({"loss_eval": each + 1} if step % 100 == 0 else {}),
      }
      for step, each in zip(at, loss, strict=True)
    ]
    write_jsonl(root / "runs" / name / "metrics.jsonl", rows)
  return root


MANY = {
  "wsd": ("wsd", 1000, PEAK, {}),
  "cosine": ("cosine", 800, PEAK, {"seed": 3, "data.seed": 3}),
  "constant": ("constant", 1000, PEAK, {}),
  "other": ("wsd", 1000, PEAK / 2, {}),
}


def test_curves_of_a_study_are_forecast_by_sets_of_runs(resolved, tmp_path, capsys):
  """Runs that differ in schedule, length and seeds belong together; another rate is another set, here of one run."""
  config, _ = resolved
  root = folder_of_runs(tmp_path / "study", config, MANY)
  assert main.main(["forecast", str(root), "--schedule=linear:steps=1000", "--json"]) == 0
  document = json.loads(capsys.readouterr().out)
  assert [row["group"] for row in document["rows"]] == ["optim.lr=0.002"]
  assert sorted(document["curves"]) == ["constant", "cosine", "wsd"]
  assert any(
    "group optim.lr=0.001: laws of the schedule need 2 or more curves" in note for note in document["warnings"]
  )
  assert any("losses are those of evaluations" in note for note in document["warnings"])
  rates = notation.parse("linear:steps=1000", PEAK, WARMUP).rates()
  law = laws.progress_annealing
  truth = fitting.predict(law, law.theta(TRUTH), sums.sums(rates, np.array([1000]), PEAK, 1000.0))[0]
  (row,) = document["rows"]
  assert row["interval90"][0] <= truth + 1 <= row["interval90"][1]  # the held-out loss is larger by 1
  assert main.main(["forecast", str(root), "--schedule=linear:steps=1000", "--loss=loss_train", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["rows"][0]["predicted"] == pytest.approx(truth, rel=5e-3)


def test_a_decay_is_proposed_for_each_set_of_runs(resolved, tmp_path, capsys):
  config, _ = resolved
  wide = {f"{name}2": (*facts[:3], {**facts[3], "model.width": 32}) for name, facts in MANY.items() if name != "other"}
  few = {name: facts for name, facts in MANY.items() if name != "other"}
  root = folder_of_runs(tmp_path / "study", config, few | wide)
  asked = ["design", str(root), "--schedule", "--target=1e10", "--loss=loss_train", "--json"]
  assert main.main(asked) == 0
  narrow, wider = json.loads(capsys.readouterr().out)["proposals"]
  assert (narrow["group"], wider["group"]) == ("model.width=16", "model.width=32")
  assert narrow["steps"] > wider["steps"]  # a step of the wider model takes more FLOPs
  assert narrow["tokens"] == narrow["steps"] * config.train.batch_size * config.data.context
  assert 0.99e10 < wider["flops"] <= 1e10
  assert all(each["best"]["predicted"] <= each["usual"][0]["predicted"] for each in (narrow, wider))


def test_rates_of_a_run_are_those_that_it_logs(resolved, tmp_path):
  """With muP and multiples of single parameters, which are the same at every step."""
  config, corpus = resolved
  for schedule in ("wsd", "cosine"):
    one = config.copy_and_resolve_references()
    one.optim.update(schedule=schedule, parametrization="mup", rates=("output=0.5",))
    one.train.update(steps=12, log_every=3)
    run = Run(one, tmp_path / schedule)
    train_runs([run], corpus, Display(quiet=True), StopRequest())
    exact = study_curves.rates(one)
    logged = {row["step"]: row["lr"] for row in metrics.read(run.folder)}
    assert logged == {step: pytest.approx(exact[step], rel=1e-6) for step in (3, 6, 9, 12)}
  (read,) = study_curves.read(tmp_path / "wsd").groups.values()
  assert [len(each.rates) for each in read] == [13]
  both = study_curves.read(tmp_path, "loss_train").groups[""]  # a folder with the folders of runs
  assert sorted(each.name for each in both) == ["cosine", "wsd"]
  evaluated = study_curves.read(tmp_path, "loss_eval").groups[""]
  assert [each.steps.tolist() for each in evaluated] == [[12], [12]]  # of the record: there was none before the end


def test_losses_that_a_branch_shares_with_its_trunk_count_once(resolved, tmp_path):
  config, _ = resolved
  root = folder_of_runs(tmp_path / "s", config, {"trunk": ("wsd", 1000, PEAK, {}), "branch": ("wsd", 500, PEAK, {})})
  write_json(root / "runs" / "branch" / "trunk.json", {"trunk": "trunk", "step": 400})
  branch, trunk = study_curves.read(root).groups[""]
  assert branch.steps.tolist() == list(range(410, 501, 10))
  assert trunk.steps.tolist() == list(range(10, 1001, 10))
  assert (branch.shared, trunk.shared) == (0, 400)
  (fit,) = forecast.fit([branch, trunk], [laws.progress_annealing]).fits
  assert [len(error) for error in fit.errors] == [10, 60]  # of the trunk without what the branch shows, too


BAD_FOLDERS = {
  "nothing": ({}, "holds neither a study nor a run"),
  "no metrics": ({"a": None}, "has no loss curves (run a is left out: it has no metrics yet)"),
  "a ramp": ({"a": {"train.ramp": ("4@2560",)}, "b": {"train.ramp": ("4@2560",)}}, "its batch size changes"),
  "one run": ({"a": {}}, "need 2 or more curves with different schedules, and there is 1 (a)"),
  "one schedule": ({"a": {}, "b": {"seed": 5}}, "all 2 curves have one schedule"),
  "sizes": ({"a": {}, "b": {"model.layers": 2}}, "none of the 2 groups of runs that differ only in schedule, length"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_folders_without_a_law_are_refused_in_one_line(resolved, tmp_path, capsys, name):
  config, _ = resolved
  members, message = BAD_FOLDERS[name]
  root = folder_of_runs(tmp_path / "s", config, {k: ("wsd", 1000, PEAK, v or {}) for k, v in members.items()})
  if not members:
    (root / "study.json").unlink()
  for run, changes in members.items():
    if changes is None:
      (root / "runs" / run / "metrics.jsonl").unlink()
  for asked in (
    ["forecast", str(root), "--schedule=cosine:steps=2000"],
    ["design", str(root), "--schedule", "--steps=9"],
  ):
    assert main.main(asked) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said


def test_a_report_forecasts_other_schedules_from_the_curves_of_its_runs(config, tmp_path):
  """Where the runs cannot show what a schedule does, the page says why."""
  config.train.update(steps=12, log_every=2)
  asked = ("linear:steps=12,final=.2", "cosine:steps=12,peak=1")
  the_study = Study("s", "?", Grid({"optim.final": (0.1, 0.9)}), laws=(), schedules=asked)
  report = study.run_study(study.prepare(config, the_study, tmp_path), True, StopRequest())
  (row,) = report["loss_curves"]["rows"]
  assert row["schedule"].startswith("linear:steps=12")
  low, high = row["interval90"]
  assert low < row["predicted"] < high
  assert any("its peak of 1 is above the highest rate" in note for note in report["loss_curves"]["notes"])
  page = (tmp_path / "report.html").read_text()
  assert "Other schedules of the learning rate" in page
  for text, message in (
    ("cosin:steps=9", "'cosin' is no schedule"),
    ("cosine:steps=9,end=.9", "end=0.9 is not a rate"),
  ):
    with pytest.raises(UserError, match=f"get_study: schedules: {message}"):
      study.prepare(config, dataclasses.replace(the_study, schedules=(text,)), tmp_path / "other")
  found = study_curves.forecasts(tmp_path, ("linear:steps=12,end=.9", "linear:steps=12"))
  assert len(found.rows) == 1
  assert any("end=0.9 is not a rate" in note for note in found.notes)


def test_python_fits_curves_of_a_table_a_file_and_a_folder(resolved, tmp_path, caplog):
  """With the numbers of the command; and refuses what the command refuses."""
  path = with_sums(tmp_path / "curves.csv", three())
  columns = {"D": "tokens", "C": "flops"}
  fitted = bigmodel.fit_curves(path, columns)
  table = bigmodel.fit_curves(pl.read_csv(path), columns)
  ahead, again = (each.forecast("wsd:steps=1000,end=2e-4", at=[500, 1000]) for each in (fitted, table))
  assert ahead.table.equals(again.table)
  assert ahead.table["x"].to_list() == [500, 1000]
  assert len(bigmodel.plot(ahead).data) == 4
  assert len(repr(fitted)) < 200
  assert "3 curves: constant, cosine, drop" in repr(fitted)
  rates = notation.parse("wsd:steps=1000,end=2e-4", PEAK, WARMUP).rates()
  of_rates = fitted.forecast(rates[1:])
  assert of_rates.table[0, "predicted"] == ahead.table[1, "predicted"]
  by_tokens = fitted.propose_decay(tokens=768e3)
  assert by_tokens.best == fitted.propose_decay(steps=1500).best == fitted.propose_decay(flops=4.5e9).best
  assert fitted.params["progress_annealing"] == pytest.approx(TRUTH, rel=0.15)
  config, _ = resolved
  root = folder_of_runs(tmp_path / "study", config, MANY)
  with pytest.raises(UserError, match=r"group: '' is not one of the sets of runs: 'optim.lr=0.001'; 'optim.lr=0.002'"):
    bigmodel.fit_curves(root)
  of_folder = bigmodel.fit_curves(root, {"loss": "loss_train"}, "optim.lr=0.002", ["annealing"])
  assert sorted(curve.name for curve in of_folder.forecaster.curves) == ["constant", "cosine", "wsd"]
  for bad, message in (
    (lambda: bigmodel.fit_curves({"step": [1]}), "no column 'curve'"),
    (lambda: bigmodel.fit_curves(path, {"rate": "lr"}), "columns: 'rate' is not one of"),
    (lambda: bigmodel.fit_curves(3), "curves: a int is not a polars DataFrame"),
    (lambda: bigmodel.fit_curves(path, laws=["anealing"]), "did you mean 'annealing'"),
    (lambda: fitted.forecast("cosine:steps=9,peak=1"), "its peak of 1 is above"),
    (lambda: fitted.forecast([]), "schedule: the learning rates of the steps 1, 2"),
    (lambda: fitted.forecast("wsd:steps=1000", at=[0]), "at: 0 is not a step"),
    (lambda: fitted.propose_decay(), "give one of steps, tokens and flops, not none"),
    (lambda: of_folder.propose_decay(steps=1000, tokens=1e6), "not steps and tokens"),
  ):
    with pytest.raises(UserError, match=message):
      bad()
