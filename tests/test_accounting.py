"""Parameters and FLOPs agree in every convention, for every published model."""

import numpy as np
import pytest
from handmade import record  # its folder is on the path of pytest

from bigmodel import accounting, models, study
from bigmodel.config import load, load_module
from bigmodel.laws import points

SIX = [convention for convention in accounting.CONVENTIONS if "6nd" in convention]


def published():
  module, _ = load_module("configs/published.py")
  return {name: study.resolve_without_data(module.get_config(name)) for name in module.NAMES}


@pytest.mark.parametrize("convention", SIX)
def test_6nd_uses_the_parameters_that_laws_call_n(convention):
  """C = 6 N D in every record, also for mixtures of experts."""
  configs = published() | {"moe": study.resolve_without_data(load("configs/moe.py")[0])}
  tokens, records = 1000, []
  for config in configs.values():
    counts = models.counts_of(config)
    records.append(record(**counts.params(), **counts.flops(tokens), tokens=tokens, loss_eval=1.0))
  read = points.from_records(records, convention)
  np.testing.assert_allclose(read.C, 6 * read.N * read.D, rtol=1e-12)
  sparse = np.array([one.params_active < one.params_total for one in records])
  assert sparse.sum() == 2  # mixtral_8x7b and moe
  name = "params_non_embedding" if convention == "flops_6nd_non_embedding" else "params_total"
  whole = np.array([getattr(one, name) for one in records])
  np.testing.assert_array_equal(whole == read.N, ~sparse)
