"""Forms of laws: recovered without noise from every start, written by users, refused if data cannot identify them."""

import functools

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.laws import fitting, forms, mixture_forms, uncertainty
from bigmodel.laws.fitting import Loss

RNG = np.random.default_rng(0)
X = np.geomspace(1e6, 1e10, 40)
N = np.repeat(np.geomspace(1e7, 3e9, 8), 8)
D = N * np.tile(np.geomspace(4, 300, 8), 8)
U = np.minimum(D, 3e9)
E = np.tile([1.0, 4, 16, 64, 2, 8, 32, 512], 8)
P = np.tile([2.0, 3, 4, 6, 8, 12, 16, 5], 8)
S = D / np.tile([2.0**15, 2.0**18, 2.0**21], 22)[:64]
VOCAB = np.tile([4e3, 8e3, 16e3, 32e3, 64e3], 13)[:64]
SHARES = RNG.dirichlet([0.5] * 3, 60)
TRUE = {
  "power": (dict(b=30.0, c=0.2), (X,)),
  "power_offset": (dict(a=0.3, b=30.0, c=0.25), (X,)),
  "power_shifted": (dict(b=20.0, c=0.2, g=3e-9), (X,)),
  "m4": (dict(a=0.1, span=0.9, b=300.0, c=0.4, alpha=0.7), (X,)),
  "bnsl0": (dict(a=0.3, b=30.0, c0=0.25), (X,)),
  "bnsl1": (dict(a=0.2, b=3.0, c0=0.05, c1=0.3, d1=18.0, f1=0.5), (X,)),
  "chinchilla": (dict(A=400.0, B=1500.0, E=1.7, alpha=0.34, beta=0.36), (N, D)),
  "kaplan_n": (dict(Nc=8.8e13, alpha=0.076), (N,)),
  "kaplan_nd": (dict(Nc=6.4e13, Dc=1.8e13, alpha=0.076, beta=0.103), (N, D)),
  "kaplan_nc": (dict(A=20.0, B=90.0, alpha=0.1, beta=0.2), (N, 6 * N * D)),
  "overtraining": (dict(E=1.8, a=200.0, b=350.0, eta=0.14), (N, D)),
  "data_constrained": (dict(A=400.0, B=1500.0, E=1.7, alpha=0.35, beta=0.35, rd=15.4, rn=5.3), (N, D, U)),
  "routed": (dict(a=-0.08, b=-0.14, c=0.012, d=1.15, start=2.0, limit=300.0), (N, E)),
  "experts": (dict(L0=1.5, A=3.0, B=8.0, alpha=0.2, beta=0.3), (N, E)),
  "experts_joint": (
    dict(L0=1.2, A=50.0, B=300.0, alpha=0.25, beta=0.3, gamma=0.005, delta=-0.1, zeta=0.002, omega=0.05)
    | dict(start=2.0, limit=300.0),
    (N, D, E),
  ),
  "precision": (dict(A=400.0, B=1500.0, E=1.7, alpha=0.34, beta=0.36, bits=3.0), (N, D, P)),
  "quantized": (
    dict(A=400.0, B=1500.0, E=1.7, T=0.05, alpha=0.34, beta=0.36, gamma_n=0.5, gamma_d=0.5, bits=1.5),
    (N, D, P),
  ),
  "nested": (dict(A=400.0, B=1500.0, E=1.5, alpha=0.34, beta=0.36, k=0.8), (N, D)),
  "separable": (dict(A=300.0, E=1.5, alpha=0.1, beta=0.15), (N, D)),
  "farseer": (
    dict(a1=-0.01, b1=-0.8, a2=0.1, b2=7.0, a3=-0.01, b3=1.2, alpha=0.15, beta=0.15, gamma=0.2),
    (N, D),
  ),
  "steps": (dict(A=400.0, B=1500.0, E=1.7, G=20.0, alpha=0.34, beta=0.36, gamma=0.5), (N, D, S)),
  "rectified": (dict(E=0.4, B=30.0, before=8.0, beta=0.3), (X / 1e4,)),
  "transferred": (dict(E=0.4, B=30.0, before=2000.0, beta=0.3), (X / 1e4,)),
  "vocabulary": (dict(A=400.0, B=1500.0, E=1.7, V=5.0, alpha=0.34, beta=0.36, gamma=0.3), (N, D, VOCAB)),
  "vocabulary_data": (
    dict(A=400.0, B=500.0, E=1.7, V=5.0, alpha=0.34, beta=0.36, gamma=0.3, delta=0.1),
    (N, D, VOCAB),
  ),
  "bimix": (dict(A=2.0, E=0.5, alpha=0.2, beta=0.3, G=20.0), (np.tile([0.05, 0.1, 0.3, 0.6], 16), S)),
  "mixing3": (dict(E=2.0, k=1.5, t1=-2.0, t2=-0.3, t3=0.1), tuple(SHARES.T)),
  "mixing_power3": (dict(E=1.5, B=0.5, before=0.02, beta=0.2, w1=1.0, w2=0.1, w3=0.02), tuple(SHARES.T)),
  "learning_rate": (dict(k=2.0, n=-0.3, d=0.1), (N, D)),
  "critical_batch": (dict(least=500.0, product=2e5), (np.geomspace(8, 4096, 12),)),
  "link": (dict(low=0.25, span=0.6, middle=2.2, slope=3.0), (np.linspace(1.2, 3.5, 20),)),
}  # fmt: skip


UNIDENTIFIED = (
  "data_constrained", "m4", "bnsl1", "routed", "farseer", "experts_joint", "mixing3", "mixing_power3"
)  # fmt: skip


def test_every_law_has_its_test():
  families = {name.rstrip("3") for name in TRUE if name.endswith("3")}
  assert families == set(mixture_forms.FAMILIES)
  assert {name for name in TRUE if not name.endswith("3")} | {"bnsl2", "bnsl3"} == set(forms.LAWS)


# Columns with one unit, which is changed together. Counts of experts and shares have no unit, and Farseer's law is
# another one if D is in other units.
UNITS = (("N",), ("D", "U"), ("C",), ("S",), ("x",), ("vocab",), ("P",), ("B",), ("L",))
NO_UNIT = {("farseer", "D"), ("link", "L")}


def in_other_units(name):
  """The columns of a law's points, once for each unit, with the columns of this unit in millions."""
  law, (_, columns) = forms.find(name), TRUE[name]
  for unit in UNITS:
    if set(unit) & set(law.columns) and (name, unit[0]) not in NO_UNIT:
      yield tuple(x * 1e-6 if column in unit else x for column, x in zip(law.columns, columns, strict=True))


@functools.cache
def fits(name):
  """The law fitted to points without noise and, with noise, to points in their units and in all others, side by side.

  Returns `(theta, columns)` of each. Fits that are solved side by side share the lanes of one program.
  """
  law, squares = forms.find(name), Loss("squares", 1.0)
  params, columns = TRUE[name]
  y = fitting.predict(law, law.theta(params), columns)
  sets = [(columns, y, None)]
  if not name.endswith("3"):
    noisy = y * np.exp(0.003 * np.random.default_rng(1).normal(size=len(y)))
    sets += [(each, noisy, None) for each in (columns, *in_other_units(name))]
  theta, _, _ = fitting.best(law, fitting.stack(sets), squares)
  return [(each, columns) for each, (columns, _, _) in zip(theta, sets, strict=True)]


@pytest.mark.parametrize("name", TRUE)
def test_a_law_is_recovered_from_points_without_noise(name):
  law = forms.find(name)
  params, columns = TRUE[name]
  y = fitting.predict(law, law.theta(params), columns)
  assert (y > 0).all()
  theta, _ = fits(name)[0]
  np.testing.assert_allclose(fitting.predict(law, theta, columns), y, rtol=1e-5)
  if name not in UNIDENTIFIED:  # whose parameters these points hardly tell apart
    assert dict(zip(law.names, law.readable(theta), strict=True)) == pytest.approx(params, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in TRUE if not name.endswith("3")])
def test_a_fit_does_not_depend_on_the_units_of_the_columns(name):
  """A column in millions instead of units changes no prediction."""
  law = forms.find(name)
  (_, (theta, columns), *others) = fits(name)
  fitted = fitting.predict(law, theta, columns)
  for theta_scaled, scaled in others:
    np.testing.assert_allclose(fitting.predict(law, theta_scaled, scaled), fitted, rtol=1e-6)


@pytest.mark.slow
def test_exponents_are_recovered_to_a_millionth_on_a_hundred_random_surfaces():
  law = forms.LAWS["chinchilla"]
  for _ in range(100):
    alpha, beta = RNG.uniform(0.2, 0.6, 2)
    params = {"A": np.exp(RNG.uniform(4, 8)), "B": np.exp(RNG.uniform(4, 8)), "E": RNG.uniform(0.5, 2.5)}
    y = fitting.predict(law, law.theta({**params, "alpha": alpha, "beta": beta}), (N, D))
    fit = fitting.fit(law, (N, D), y, how=Loss("squares", 1.0))
    assert [fit.params["alpha"], fit.params["beta"]] == pytest.approx([alpha, beta], rel=1e-6)


@pytest.mark.parametrize("kind", fitting.LOSSES)
def test_every_loss_recovers_the_law_and_robust_ones_do_so_despite_outliers(kind):
  law = forms.LAWS["power_offset"]
  params, columns = TRUE["power_offset"]
  y = fitting.predict(law, law.theta(params), columns) * np.exp(0.002 * RNG.normal(size=40))
  y[-4:] *= 1.3
  fit = fitting.fit(law, columns, y, how=Loss(kind, {"huber": 1e-3, "student": 2e-3}.get(kind, 1.0)))
  far = abs(fit.params["a"] / params["a"] - 1)
  assert far > 0.05 if kind == "squares" else far < 0.02


def test_a_weight_of_three_is_as_good_as_three_copies_of_a_point():
  law = forms.LAWS["power_offset"]
  y = 0.3 + 30 * X**-0.25 * np.exp(0.01 * RNG.normal(size=40))
  weights = np.tile([1.0, 3.0], 20)
  squares = Loss("squares", 1.0)
  weighted = fitting.fit(law, (X,), y, weights, squares)
  repeated = np.repeat(np.arange(40), weights.astype(int))
  assert weighted.params == pytest.approx(fitting.fit(law, (X[repeated],), y[repeated], how=squares).params, rel=1e-4)


def test_a_user_writes_a_law_in_a_file(tmp_path):
  (tmp_path / "mine.py").write_text(
    "from bigmodel.laws.forms import POSITIVE, law\n"
    "@law('mine', 'me', grid={'k': (0.1, 0.5)}, linear=('low',), low=POSITIVE, k=(0, 2))\n"
    "def quick(p, x):\n"
    "  return p.low * (1 + x ** -p.k)\n"
  )
  law = forms.find(f"{tmp_path / 'mine.py'}:quick")
  y = 0.7 * (1 + X**-0.3)
  assert fitting.fit(law, (X,), y, how=Loss("squares", 1.0)).params == pytest.approx({"low": 0.7, "k": 0.3}, rel=1e-5)
  assert "mine" not in forms.LAWS
  with pytest.raises(UserError, match="defines no law 'slow'; it defines mine"):
    forms.find(f"{tmp_path / 'mine.py'}:slow")
  assert "mine" not in forms.LAWS
  with pytest.raises(UserError, match=r"no law 'chinchila' .did you mean 'chinchilla'"):
    forms.find("chinchila")


def test_a_users_law_does_not_replace_a_built_in_one_of_its_name(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from bigmodel.laws.forms import POSITIVE, law\n"
    "@law('chinchilla', 'me', grid={}, linear=('low',), low=POSITIVE)\n"
    "def other(p, N):\n"
    "  return p.low + 0 * N\n"
  )
  built_in = forms.find("chinchilla")
  assert forms.find(f"{path}:other").source == forms.find(f"{path}:chinchilla").source == "me"
  assert forms.find("chinchilla") is built_in
  assert built_in.source.startswith("Hoffmann")


def test_the_name_of_a_users_law_has_the_hash_of_its_file(tmp_path, monkeypatch):
  """A study keeps this name; a law that was edited since is refused and named."""
  path = tmp_path / "mine.py"
  text = (
    "from bigmodel.laws.forms import POSITIVE, law\n"
    "@law('mine', 'me', grid={}, linear=('low',), low=POSITIVE)\n"
    "def mine(p, N):\n"
    "  return p.low + 0 * N\n"
  )
  path.write_text(text)
  monkeypatch.chdir(tmp_path)
  name = forms.absolute("mine.py:mine")
  assert name.startswith(f"{path}:mine@")
  assert forms.find(name) is forms.find("mine.py:mine")
  path.write_text(text + "# edited\n")
  with pytest.raises(UserError, match=r"get_study: laws: .*mine\.py has changed"):
    forms.find(name, "get_study: laws")
  assert forms.find(f"{path}:mine").name == "mine"
  assert forms.absolute("chinchilla") == "chinchilla"


def test_a_column_that_never_changes_is_named():
  with pytest.raises(UserError, match="law chinchilla: D is 1e\\+09 in all 8 points"):
    fitting.fit(forms.LAWS["chinchilla"], (np.geomspace(1e6, 1e9, 8), np.full(8, 1e9)), np.linspace(3, 2, 8))


@pytest.mark.parametrize("kind", uncertainty.KINDS)
def test_the_spread_of_bootstraps_is_that_of_fits_to_fresh_data(kind):
  """Within the noise of 60 fits to fresh data."""
  law, squares = forms.LAWS["power"], Loss("squares", 1.0)
  fresh = lambda seed: 30 * X**-0.2 * np.exp(0.02 * np.random.default_rng(seed).normal(size=40))
  exponents = [fitting.fit(law, (X,), fresh(s), how=squares).params["c"] for s in range(60)]
  fit = uncertainty.bootstrap(fitting.fit(law, (X,), fresh(99), how=squares), 300, kind=kind)
  assert np.std(law.readable(fit.draws)[1]) == pytest.approx(np.std(exponents), rel=0.4)


def test_parameters_that_points_cannot_identify_are_named_as_a_ridge():
  """If all N are nearly alike, the points cannot separate A from E; if they differ, they identify A."""
  law = forms.LAWS["chinchilla"]
  theta = law.theta(TRUE["chinchilla"][0])
  noise = np.exp(0.003 * RNG.normal(size=64))
  alike = np.where(np.arange(64) % 2, 1e8, 1.1e8)
  fit = lambda columns: fitting.fit(law, columns, fitting.predict(law, theta, columns) * noise)
  assert "A" in uncertainty.ridges(fit((alike, D)))
  assert uncertainty.ridges(fit((N, D))) == {}


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("(p.a * decay(N, p.k))[None]", r"law bad returns shape \(1, 3\) for points of shape \(3,\)"),
    ("p.b * decay(N, p.k)", "law bad fails: AttributeError"),
    ("p.a", r"law bad returns shape \(\) for points"),
  ],
)
def test_a_users_law_that_does_not_return_one_value_for_each_point_is_refused(tmp_path, body, message):
  (tmp_path / "bad.py").write_text(
    "from bigmodel.laws.forms import POSITIVE, decay, law\n"
    "@law('bad', 'here', grid={'k': (0.1, 0.3)}, linear=('a',), a=POSITIVE, k=(0, 2))\n"
    f"def bad(p, N):\n  return {body}\n"
  )
  with pytest.raises(UserError, match=message):
    forms.find(f"{tmp_path / 'bad.py'}:bad")


# The starts of these two are at fixed places in log N; their fits get to the same optimum all the same (above).
FIXED_STARTS = ("routed", "farseer")


@pytest.mark.parametrize("name", [name for name in TRUE if not name.endswith("3") and name not in FIXED_STARTS])
def test_the_starts_of_a_fit_do_not_depend_on_the_units_of_the_columns(name):
  """The losses at all starts are the same for a column in millions."""
  law = forms.find(name)
  params, columns = TRUE[name]
  y, weights = fitting.predict(law, law.theta(params), columns), np.ones(len(columns[0]))

  def losses(columns):
    return fitting.predict(law, fitting.project(law, law.starts(columns), columns, y, weights), columns)

  for scaled in in_other_units(name):
    np.testing.assert_allclose(losses(scaled), losses(columns), rtol=1e-6)
