"""The ledger: sealed forecasts beside their truths, verified, by distance."""

import dataclasses
import json
import math

import handmade
import msgspec
import numpy as np
import pytest

from bigmodel import experiments, record
from bigmodel.cli import main
from bigmodel.config import load_module
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.laws import facts, ledger, seals
from bigmodel.laws.ledger import Question
from bigmodel.laws.seals import Provenance
from bigmodel.report import ledger as pages
from bigmodel.study import ledger as ledgers

SEALED, LATER = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"


def forecast(predicted=2.0, half=0.1, **changes):
  ends = {
    f"interval{level}": (predicted * math.exp(-half * times), predicted * math.exp(half * times))
    for level, times in ((50, 0.4), (80, 0.8), (90, 1.0), (95, 1.2))
  }
  target = facts.Target(N=1e6, D=1e8, C=6e14, run_id="target")
  fields = {"parts": {"noise": 0.01}} | ends | changes
  return facts.Forecast(convention="flops_6nd", predicted=predicted, target=target, **fields)


def kept(name="one", distance=8.0, actual=2.0, started_at=LATER, **changes):
  """A forecast with its truth, as a study leaves it; `changes` are fields of the forecast."""
  sealed = seals.seal(forecast(**{"fitted": [f"{name} {i}" for i in range(16)]} | changes), SEALED)
  ended = record.seal(handmade.record(run_id="target", loss_eval=actual, started_at=started_at))
  return ledgers.Kept(
    about=Question(study=name, question="Does it hold?", family="decoder", fitted=16, distance=distance),
    measure="loss",
    forecast=sealed.to_json(),
    record=record.to_json(ended),
    provenance=Provenance(started_at, sealed.sha256),
  )


def put(folder, *documents):
  for one in documents:
    write_json(folder / f"{one.about.study}.json", msgspec.to_builtins(one))
  return str(folder)


@pytest.mark.parametrize(
  ("actual", "inside", "score"),
  [
    (2.0, [True] * 4, 0.2),
    (2.0 * math.exp(0.09), [False, False, True, True], 0.2),
    (2.0 * math.exp(-0.11), [False, False, False, True], 0.2 + 20 * 0.01),
    (2.0 * math.exp(0.3), [False] * 4, 0.2 + 20 * 0.2),
  ],
)
def test_a_forecast_is_scored(tmp_path, actual, inside, score):
  (one,) = ledgers.collect([put(tmp_path, kept(actual=actual))]).forecasts
  assert [one.inside[level] for level in seals.LEVELS] == inside
  assert one.log_error == pytest.approx(math.log(2 / actual))
  assert one.width == pytest.approx(0.2)
  assert one.interval_score == pytest.approx(score)


def test_totals_are_by_distance_and_of_all(tmp_path):
  near = [kept(f"near{i}", 7.9, 2 * math.exp(0.02 * i)) for i in range(4)]
  far = [kept("middle", 50.0, 2 * math.exp(0.095)), kept("far", 101.0, 3.0)]
  made = ledgers.collect([put(tmp_path, *near, *far)])
  assert [(one.distance, one.forecasts) for one in made.totals] == [
    ("all", 6), ("8 to 30 times", 4), ("30 to 100 times", 1), ("100 times and more", 1)
  ]  # fmt: skip
  every, close, _, last = made.totals
  assert every.coverage == pytest.approx({"interval50": 3 / 6, "interval80": 4 / 6, "interval90": 5 / 6,
                                          "interval95": 5 / 6})  # fmt: skip
  assert close.median_error == pytest.approx(0.03)
  assert close.coverage["interval50"] == 0.75
  assert last.coverage["interval95"] == 0
  assert [one.study for one in made.forecasts][-1] == "far"


@pytest.mark.parametrize(
  ("distance", "name"),
  [(4.0, "under 8 times"), (7.9, "8 to 30 times"), (30.0, "30 to 100 times"), (99.9, "100 times and more"),
   (1e4, "100 times and more")],
)  # fmt: skip
def test_classes_of_distance(distance, name):
  assert ledger.class_of(distance) == name


def changed(one, **fields):
  return msgspec.structs.replace(one, **fields)


@pytest.mark.parametrize(
  ("breaks", "message"),
  [
    (lambda one: changed(one, forecast=one.forecast | {"predicted": 2.5}), "not what was sealed"),
    (lambda one: changed(one, forecast=one.forecast | {"sealed_at": LATER}), "not what was sealed"),
    (lambda one: changed(one, provenance=Provenance(LATER, "0" * 64)), "does not carry the seal"),
    (lambda one: kept("bad", started_at=SEALED), "started before the forecast was sealed"),
    (lambda one: changed(one, record=one.record | {"loss_eval": 2.01}), "result_sha256 does not match"),
    (lambda one: changed(one, record=record.to_json(record.seal(handmade.record(run_id="other")))), "not the target"),
    (lambda one: changed(one, record=None), "its record is missing"),
    (lambda one: changed(one, about=changed(one.about, fitted=3)), "about.fitted is 3"),
  ],
)
def test_a_broken_seal_is_refused_by_name(tmp_path, capsys, breaks, message):
  folder = put(tmp_path, kept("good"), breaks(kept("bad")))
  assert main.main(["ledger", folder]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert "bad.json" in error
  assert "good.json" not in error


def test_every_broken_seal_is_named(tmp_path, capsys):
  bad = [kept(name, started_at=SEALED) for name in ("first", "second")]
  assert main.main(["ledger", put(tmp_path, *bad)]) == 2
  error = capsys.readouterr().err
  assert "first.json" in error
  assert "second.json" in error


def test_what_has_no_score_is_listed(tmp_path):
  (tmp_path / "empty").mkdir()
  put(tmp_path / "kept", changed(kept("waiting"), record=None, provenance=None))
  lost = record.to_json(record.seal(handmade.record(run_id="target", status="diverged", loss_eval=None)))
  put(tmp_path / "kept", changed(kept("diverged"), record=lost))
  seals.write(tmp_path / "target.json", seals.seal(forecast(), SEALED))
  made = ledgers.collect([tmp_path / "empty", tmp_path / "kept", tmp_path / "target.json"])
  assert not made.forecasts
  assert [one.why.split(";")[0] for one in made.without] == [
    "holds neither a study nor kept forecasts",
    "the target has diverged",
    "the target has not run",
    "sealed, without its truth",
  ]


@pytest.mark.parametrize(
  ("write", "message"),
  [
    (lambda path: None, "does not exist"),
    (lambda path: path.write_text('{"a": 1}'), "not a sealed forecast"),
    (lambda path: path.write_text('{"about": {}}'), "about"),
    (lambda path: path.write_text("{"), "bad.json"),
  ],
)
def test_other_files_are_refused(tmp_path, capsys, write, message):
  path = tmp_path / "bad.json"
  write(path)
  assert main.main(["ledger", str(path)]) == 2
  assert message in capsys.readouterr().err


def test_a_forecast_with_one_interval_counts_where_it_has_one(tmp_path):
  """Earlier versions sealed the 90% interval alone."""
  early = kept("early", interval50=msgspec.UNSET, interval80=msgspec.UNSET, interval95=msgspec.UNSET, actual=2.5)
  made = ledgers.collect([put(tmp_path, early, kept("later"))])
  assert made.totals[0].coverage == {"interval50": 1, "interval80": 1, "interval90": 0.5, "interval95": 1}


def test_the_distance_is_that_of_the_seal(tmp_path):
  """That of the file counts only where an early forecast has none, which a note says."""
  sealed = kept("sealed", distance=1e5, parts={"distance": math.log(8.0)})
  made = ledgers.collect([put(tmp_path, sealed, kept("early", distance=50.0))])
  assert {one.study: pytest.approx(one.distance) for one in made.forecasts} == {"sealed": 8.0, "early": 50.0}
  assert made.notes == ["the distance of forecasts by early versions is not sealed: early"]


def test_a_forecast_counts_once(tmp_path, capsys):
  once = put(tmp_path / "once", kept("one"), kept("two", predicted=2.1))
  renamed = changed(kept("one"), about=kept("renamed").about)
  copies = [put(tmp_path / "copy", kept("one")), put(tmp_path / "renamed", renamed)]
  made = ledgers.collect([once, once, *copies])
  assert [one.study for one in made.forecasts] == ["one", "two"]
  assert [note for note in made.notes if "same forecast" in note and "study one" in note] == made.notes[:2]
  assert main.main(["ledger", once, put(tmp_path / "changed", kept("one", actual=2.2))]) == 2
  assert "the truth of this forecast is 2.2 here, and 2 in another file" in capsys.readouterr().err


def test_the_page_and_the_document(tmp_path, capsys):
  folder = put(tmp_path / "kept", kept("one"), kept("two", 100.0, 2.5))
  assert main.main(["ledger", folder, f"--page={tmp_path / 'page.html'}", "--json"]) == 0
  document = json.loads(capsys.readouterr().out)
  assert [one["inside"]["interval90"] for one in document["forecasts"]] == [True, False]
  html = (tmp_path / "page.html").read_text()
  assert all(text in html for text in ("Calibration", "Each forecast beside its truth", "Does it hold?", "OUTSIDE"))


def test_the_plot_of_errors_has_the_truth_at_zero():
  """The ends of the bars are ln(end of the interval / truth)."""
  sealed = seals.seal(forecast(), SEALED)
  question = Question(study="one", question="", family="decoder", fitted=16, distance=8.0)
  one = ledger.entry(question, sealed, 2.0 * math.exp(0.04))
  figure = pages.errors([one]).to_dict()
  inside = figure["data"][0]
  assert figure["layout"]["yaxis"]["type"] == "category"  # names on a linear axis are not drawn
  assert list(inside["x"]) == pytest.approx([-0.04]) == [one.log_error]
  assert list(inside["error_x"]["array"]) == pytest.approx([0.1])
  assert list(inside["error_x"]["arrayminus"]) == pytest.approx([0.1])


def test_quantiles_of_the_binomial_band():
  """Of 10 fair coins: P(at most 2) = 0.0547, P(at most 1) = 0.0107, P(at most 8) = 0.9893, P(at most 7) = 0.9453."""
  half = np.array([0.5])
  assert pages.binomial_quantile(10, half, 0.05) == 2
  assert pages.binomial_quantile(10, half, 0.95) == 8


def test_kept_files_say_what_they_were_kept_from(tmp_path):
  folder = put(tmp_path / "kept", kept("one"))
  (again,) = ledgers.keep([folder], tmp_path / "again")
  assert read_json(again) == read_json(tmp_path / "kept" / "one.json")


def test_two_studies_of_the_same_name_are_not_kept_in_one_file(tmp_path, capsys):
  folders = [put(tmp_path / part, kept("one")) for part in ("first", "second")]
  assert main.main(["ledger", *folders, f"--keep={tmp_path / 'kept'}"]) == 2
  assert "another of these studies is named one" in capsys.readouterr().err
  assert not (tmp_path / "kept").exists()


def test_the_experiment_scores_its_folder(tmp_path, monkeypatch):
  module, _ = load_module(str(experiments.find("ledger")))
  monkeypatch.setattr(module, "FOLDER", tmp_path)
  with pytest.raises(UserError, match="holds no forecast with its truth"):
    module.measure(tmp_path, True)
  put(tmp_path, kept("one"), kept("two", 100.0, 2.5))
  results = {result.what: result.ours for result in module.measure(tmp_path, True)}
  assert results["all: forecasts"] == 2
  assert results["100 times and more: truths inside interval90"] == 0


def test_the_experiments_studies_differ_and_forecast_far():
  """Each is found again by its seed, and its target is at least 8 times its largest budget."""
  module, _ = load_module(str(experiments.find("ledger")))
  for name in module.STUDIES:
    config = module.get_config(name)
    described = module.get_study(config)
    assert described.name == name
    assert described.target.flops >= 7.99 * max(described.design.budgets)
  assert len({repr(module.get_config(name)) for name in module.STUDIES}) == len(module.STUDIES)
  assert sum(one.times >= 100 for one in module.STUDIES.values()) >= 4
  with pytest.raises(UserError, match="bytes_sciense"):
    module.get_config("bytes_sciense")


def test_repetitions_of_the_quickstart_are_counted(tmp_path, monkeypatch):
  """Each has its own name and runs, and the quickstart's study otherwise."""
  module, _ = load_module(str(experiments.find("repetitions")))
  configs = {name: module.get_config(name) for name in module.REPETITIONS}
  assert [module.get_study(config).name for config in configs.values()] == list(configs)
  assert len({repr(config) for config in configs.values()}) == len(configs) >= 10
  [plain] = [module.get_study(config) for name, config in configs.items() if name == "quickstart_0"]
  quickstart, _ = load_module(str(module.QUICKSTART))
  assert dataclasses.replace(quickstart.get_study(quickstart.get_config()), name="quickstart_0") == dataclasses.replace(
    plain, settings=quickstart.settings
  )
  monkeypatch.setattr(module, "FOLDER", tmp_path)
  put(tmp_path, kept("near", 8.0, 2.0), kept("far", 8.0, 2.5))
  results = {result.what: result.ours for result in module.measure(tmp_path, True)}
  assert results["repetitions"] == 2
  assert results["truths inside the 90% interval"] == 1
  assert results["errors of at most 1.5%"] == 1
