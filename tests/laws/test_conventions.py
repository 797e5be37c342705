"""Sizes are compared and chosen in the convention in which their law was fitted: all conventions, dense and experts."""

import math

import numpy as np
import pytest
from handmade import record  # its folder is on the path of pytest

from bigmodel import models, study
from bigmodel.accounting import CONVENTIONS, params_in
from bigmodel.config import with_overrides
from bigmodel.designs.design import closest_size
from bigmodel.laws import summary
from bigmodel.laws.facts import Fits, Forecast, Optimum
from bigmodel.laws.points import from_records
from bigmodel.study import IsoFlop, Ladder, Study, Target, default_config, resolve_without_data
from bigmodel.study.target import seal_forecast

MIXTURES = {
  "dense": {},
  "untied": {"model.tie_embeddings": False},
  "experts": {"model.experts": 16, "model.experts_per_token": 2},
}
# A small vocabulary next to 257 rows, and many layers next to one, so that the counts rank sizes differently.
SIZES = [
  {"model.width": width, "model.layers": layers}
  for width, layers in ((16, 1), (16, 4), (32, 1), (32, 4), (64, 1), (48, 4), (64, 4))
]
EVERY = pytest.mark.parametrize(("mixture", "convention"), [(m, c) for m in MIXTURES for c in CONVENTIONS])


def counts_for(mixture):
  base = with_overrides(default_config("decoder"), {"model.head_size": 8, **MIXTURES[mixture]})

  def counts(size):
    own = {name: value for name, value in size.items() if name.startswith("model.")}
    return models.counts_of(resolve_without_data(with_overrides(base, own)))

  return counts


def record_of(counts, tokens, loss):
  return record(tokens=tokens, loss_eval=loss, **counts.params(), **counts.flops(tokens))


@EVERY
def test_points_of_a_law_have_the_parameters_that_its_flops_count(mixture, convention):
  counts = counts_for(mixture)
  points = from_records([record_of(counts(size), 1000, 2.0) for size in SIZES], convention)
  if convention.startswith("flops_6nd"):
    np.testing.assert_allclose(points.C, 6 * points.N * points.D, rtol=1e-12)
  if mixture != "experts":
    name = "params_non_embedding" if convention == "flops_6nd_non_embedding" else "params_total"
    assert points.N.tolist() == [counts(size).params()[name] for size in SIZES]
  else:  # of 16 experts a token meets 2
    assert all(counts(size).params_non_embedding > N for N, size in zip(points.N, SIZES, strict=True))


@EVERY
def test_ratios_of_designs_are_tokens_over_the_same_parameters(mixture, convention):
  counts = counts_for(mixture)
  N_of = lambda size: params_in(counts(size).params(), convention)
  budget = counts(SIZES[3]).flops(20 * N_of(SIZES[3]))[convention]
  planned = IsoFlop((budget,), SIZES, ratios=(10, 40), convention=convention).runs(counts)
  chosen = {(one.overrides["model.width"], one.overrides["model.layers"]) for one in planned}
  ratios = {tuple(size.values()): budget / counts(size).flops(1)[convention] / N_of(size) for size in SIZES}
  assert chosen == {size for size, ratio in ratios.items() if 10 <= ratio <= 40}
  assert 0 < len(chosen) < len(SIZES)
  for one in Ladder(SIZES, (20,), convention).runs(counts):
    assert one.overrides["train.tokens"] == 20 * N_of(one.overrides)


@EVERY
def test_the_optimum_of_a_law_chooses_the_closest_size_in_its_convention(mixture, convention):
  """Losses of a law in this convention's N, whose best sizes at four budgets are fitted by parabolas."""
  counts = counts_for(mixture)
  unit = float(np.median([params_in(counts(size).params(), convention) for size in SIZES]))
  records = []
  for factor in (1 / 4, 1 / 2, 1.0, 2.0):
    for size in SIZES:
      own = counts(size)
      N = params_in(own.params(), convention)
      C = 100 * factor * counts(SIZES[3]).flops(round(unit))[convention]
      tokens = round(C / own.flops(1)[convention])
      loss = 2 + 0.05 * math.log(N / (unit * factor**0.5)) ** 2
      records.append(record_of(own, tokens, loss))
  target = 8 * max(one.flops(convention) for one in records)
  fits = summary.fit(records, ["isoflop"], convention, target)
  best = summary.optimum_at(fits.optimum, target)
  assert best == pytest.approx(unit * 4, rel=0.02)  # 16 times the compute of factor 1; tokens are whole numbers
  sizes = [params_in(counts(size).params(), convention) for size in SIZES]
  for N in (best, *sizes):
    closest = closest_size(SIZES, counts, convention, N)
    distance = abs(math.log(params_in(counts(closest).params(), convention) / N))
    assert distance == min(abs(math.log(one / N)) for one in sizes)


@pytest.mark.parametrize("mixture", ["dense", "experts"])
@pytest.mark.parametrize("convention", ["flops_6nd", "flops_6nd_non_embedding"])
def test_a_sealed_target_has_the_size_of_the_optimum(mixture, convention, config, tmp_path, monkeypatch):
  """Each of the sizes in turn is the optimum: the target of the sealed forecast has that size and its N."""
  config = with_overrides(config, {"model.head_size": 8, **MIXTURES[mixture], "data.repeat": True, "train.steps": 0})
  design = IsoFlop((1e8, 2e8), SIZES[:3], convention=convention)
  flops = 2e9
  prepared = study.prepare(config, Study("s", "?", design, target=Target(flops, SIZES)), tmp_path)
  forecast_of = []

  def make_forecast(records, laws, convention, target, noise):
    forecast_of.append(target.N)
    return Forecast(convention=convention, predicted=2.0, interval90=(1.9, 2.1), parts={}, target=target)

  monkeypatch.setattr(summary, "make_forecast", make_forecast)
  for size in SIZES:
    N = params_in(prepared.counts_of(size).params(), convention)
    best = Optimum(law="chinchilla", C=flops, N=N, D=1, N_interval90=(1, 1), D_interval90=(1, 1), loss=2.0, inside=True)
    fits = Fits(laws=[], optimum=[best], points=0, convention=convention)
    test_run = seal_forecast(prepared, fits).forecast.target
    assert test_run.overrides
    assert {name: test_run.overrides[name] for name in size} == size
    assert test_run.N == forecast_of[-1] == N
    (tmp_path / "forecasts" / "target.json").unlink()
