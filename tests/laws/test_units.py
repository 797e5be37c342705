"""Units of columns: conversions, units that names state, and magnitudes that make no sense."""

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.laws import reach, units

N, D = np.array([4e6, 3e8]), np.array([2e7, 2e10])


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("a", [2.0, 4.0]),
    ("a*1e6", [2e6, 4e6]),
    ("a * 10^6", [2e6, 4e6]),
    ("a*10**6", [2e6, 4e6]),
    ("a*-1", [-2.0, -4.0]),
    ("a/100", [0.02, 0.04]),
    ("1-a", [-1.0, -3.0]),
    ("100 - a", [98.0, 96.0]),
    ("a*2", [5.0, 6.0]),  # a column of this name
  ],
)
def test_a_column_is_converted_as_it_is_written(text, values):
  columns = {"a": np.array([2.0, 4.0]), "a*2": np.array([5.0, 6.0])}
  column = units.parse(text, columns)
  assert column.values(columns[column.name]).tolist() == pytest.approx(values)


@pytest.mark.parametrize("factor", ["0", "inf", "nan"])
def test_a_factor_is_a_finite_number_other_than_0(factor):
  with pytest.raises(UserError, match="--n: the factor of"):
    units.parse(f"a*{factor}", ["a"], "--n")


@pytest.mark.parametrize(
  ("name", "factor"),
  [
    *((name, 1e6) for name in ("params_M", "N (millions)", "params_m", "Params(M)", "paramsM", "Parameter (Mio.)")),
    *((name, 1e9) for name in ("tokens_B", "tokens_in_billions", "Tokens [B]", "Btok", "tokens (x10^9)", "size_bn")),
    *((name, 1e18) for name in ("flops_1e18", "EFLOPs", "exaflops", "C/1e18")),
    *((name, 8.64e19) for name in ("PF-days", "pfs_days", "petaflop/s-days", "PFLOP-days")),
    *((name, None) for name in ("N", "D", "C", "params", "Model Size", "Training FLOP", "params_non_embedding")),
    *((name, None) for name in ("tokens", "flops_6nd", "m", "M", "n_b", "loss_eval", "steps", "train_tokens")),
  ],
)
def test_a_name_states_its_unit(name, factor):
  assert units.stated(name) == factor


def test_names_state_logarithms():
  names = ("log10_params", "logN", "lnD", "log10(N)", "logits", "catalog_size", "login")
  assert [units.is_logarithm(name) for name in names] == [True, True, True, True, False, False, False]


@pytest.mark.parametrize(
  ("columns", "n", "d", "c", "message"),
  [
    ({"N": "params", "D": "tokens"}, N, D, None, ""),
    ({"N": "params", "D": "tokens"}, N / 1e3, D / 1e3, None, ""),  # small models
    ({"N": "params_M", "D": "tokens_B"}, N, D, None, ""),  # whose values are plain although the names say otherwise
    ({"N": "params_M*1", "D": "tokens_B*1"}, N / 1e6, D / 1e9, None, ""),
    ({"N": "params_M", "D": "tokens"}, N / 1e6, D, None, "in units of 1e6, by its name; --n=params_M.1e6"),
    ({"N": "n", "D": "d"}, N / 1e6, D, None, "too small for a number of parameters.*--n=n.1e6"),
    ({"N": "n", "D": "d"}, N, D / 1e9, None, "too small for a number of tokens.*--d=d.1e9"),
    ({"N": "log_n", "D": "d"}, np.log10(N), D, None, "holds logarithms"),
    ({"N": "n", "D": "d"}, np.log10(N), np.log10(D), None, "logarithms?"),
    ({"N": "tokens", "D": "params"}, D, N, None, "exchange them"),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6 * N * D, ""),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 2 * N * D, ""),
    ({"N": "n", "D": "images", "C": "c"}, N, D, 6 * N * D * 196, ""),  # tokens per image
    ({"N": "n_total", "D": "d", "C": "c"}, N, D, 6 * N * D / 64, ""),  # experts
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6 * N * D * 25, ""),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6 * N * D / 25, ""),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6 * N * D * 40, "C is 40 times 6 N D in the median"),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6 * N * D / 64, "--c=c.1e3; or does n count all experts.*leave out --c"),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6e6 * N * D, r"C is 1e6 times 6 N D.*is n in millions .--n=n.1e6"),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6e15 * N * D, r"--n=n.1e6 --d=d.1e9"),
    ({"N": "n", "D": "d", "C": "c"}, N, D, 6e-9 * N * D, "C is 1e-9 times 6 N D.*is c in units of 1e9"),
    ({"N": "n", "D": "d", "C": "PF-days"}, N, D, 6 * N * D / 8.64e19, "--c=PF-days.8.64e19"),
  ],
)
def test_units_that_make_no_sense_are_doubted_and_others_are_not(columns, n, d, c, message):
  values = {"N": n, "D": d, **({} if c is None else {"C": c})}
  names = {text.partition("*")[0] for text in columns.values()}
  doubts = "; ".join(map(str, units.doubts(columns, values, names)))
  if not message:
    assert doubts == ""
  else:
    with pytest.raises(UserError, match=message):
      raise UserError(doubts)


def test_distances_beyond_the_points_are_noted_warned_of_and_refused():
  points = np.array([1e10, 1e12])
  assert [reach.times(value, points) for value in (1e11, 1e14, 1e9)] == pytest.approx([1, 100, 0.1])
  assert [reach.describe(times) for times in (1, 100, 0.1)] == ["within", "100 x", "10 x below"]
  assert reach.check("--at=1e14", "C", 1e14, points) == []
  (far,) = reach.check("--at=1e16", "C", 1e16, points)
  assert "--at=1e16 lies 1e+04 times beyond the largest C of the points" in far
  for value in (1e21, 10.0):
    with pytest.raises(UserError, match=r"are they in the same units\? --force answers anyway"):
      reach.check("--at", "C", value, points)
    assert reach.check("--at", "C", value, points, force=True)
