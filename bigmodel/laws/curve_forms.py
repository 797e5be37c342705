"""Laws of one scale x, such as parameters, tokens or examples: power laws and their bends."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.laws.law import EXPONENTS, POSITIVE, REAL, Bounds, Law, Rescale, at_largest, decay, law

FEW = (0.1, 0.3, 0.6)  # starts of exponents, where other parameters need starts, too


def in_units_of_1_over_x(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
  """Starts of the shift g, which is added to 1 / x."""
  return grid["g"] / largest["x"]


def after_log_x(parameter: str) -> Rescale:
  """Starts of the log of a scale, from distances to the log of the largest x."""

  def rescale(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
    return grid[parameter] + np.log(largest["x"])

  return rescale


@law("power", "Hestness et al. 2017", grid={"c": EXPONENTS}, linear=("b",), b=POSITIVE, c=(-1, 5))
def power(p, x):
  return p.b * decay(x, p.c)


@law(
  "power_offset",
  "Hestness et al. 2017; M2 of Alabdulmohsin et al. 2022",
  grid={"c": EXPONENTS},
  linear=("a", "b"),
  a=POSITIVE,
  b=POSITIVE,
  c=(0, 5),
)
def power_offset(p, x):
  return p.a + p.b * decay(x, p.c)


@law(
  "power_shifted",
  "M3 of Alabdulmohsin et al. 2022",
  linear=("b",),
  b=POSITIVE,
  c=(0, 5),
  g=POSITIVE,
  grid={"c": FEW, "g": (1.0, 0.1, 0.01, 1e-3, 1e-4)},
  rescale={"g": in_units_of_1_over_x},
)
def power_shifted(p, x):
  return p.b * jnp.exp(p.c * jnp.log(1 / x + p.g))


@law(
  "m4",
  "M4 of Alabdulmohsin et al. 2022",
  a=POSITIVE,
  span=POSITIVE,
  b=POSITIVE,
  c=(0, 5),
  alpha=(0, 10),
  grid={
    "a": (1e-3, 0.3),
    "span": (1.0, 3.0),
    "b": (0.01, 0.1, 1.0),
    "c": (0.2, 0.5),
    "alpha": (0.2, 1.0),
  },
  rescale={"b": at_largest("b", "x", "c")},
)
def m4(p, x):
  """(L - a) / (a + span - L)^alpha = b x^-c, solved for L."""
  right = jnp.log(p.b) - p.c * jnp.log(x) - (1 - p.alpha) * jnp.log(p.span)

  # With L = a + span * sigmoid(s) the log of both sides is monotone in s, so that Newton's method converges.
  def newton(s, alpha, right):
    residual = -jax.nn.softplus(-s) + alpha * jax.nn.softplus(s) - right
    return s - residual / (jax.nn.sigmoid(-s) + alpha * jax.nn.sigmoid(s))

  alpha, target = jax.lax.stop_gradient(p.alpha), jax.lax.stop_gradient(right)
  s = jnp.clip(target, -30, 30)
  s = jax.lax.fori_loop(0, 12, lambda _, s: jnp.clip(newton(s, alpha, target), -60, 60), s)
  s = newton(newton(s, p.alpha, right), p.alpha, right)
  return p.a + p.span * jax.nn.sigmoid(s)


def _broken_power_law(breaks: int) -> Law:
  """Broken neural scaling law (Caballero et al. 2023, equation 1).

  Break i lies at x = exp(d_i), has the width f_i in log x, and changes the exponent by c_i.
  """
  bounds: dict[str, Bounds] = {"a": POSITIVE, "b": POSITIVE, "c0": (-1, 5)}
  grid: dict[str, tuple[float, ...]] = {"c0": (0.0, 0.1, 0.4)}
  rescale: dict[str, Rescale] = {}
  for i in range(1, breaks + 1):
    bounds |= {f"c{i}": (-5, 5), f"d{i}": REAL, f"f{i}": (0.05, 20)}
    places = (-9.0, -7.0, -5.0, -3.0, -1.0) if breaks == 1 else ((-7.0,), (-4.0,), (-1.5,))[i - 1]
    grid |= {f"c{i}": (0.2, 0.6), f"d{i}": places, f"f{i}": (0.5, 2.0)}
    rescale[f"d{i}"] = after_log_x(f"d{i}")

  def value(p, x):
    log_term = jnp.log(p.b) - p.c0 * jnp.log(x)
    for i in range(1, breaks + 1):
      c, d, f = (getattr(p, f"{name}{i}") for name in ("c", "d", "f"))
      log_term -= c * f * jax.nn.softplus((jnp.log(x) - d) / f)
    return p.a + jnp.exp(log_term)

  return Law(f"bnsl{breaks}", "Caballero et al. 2023", value, ("x",), bounds, grid, ("a", "b"), rescale=rescale)


bnsl0, bnsl1, bnsl2, bnsl3 = map(_broken_power_law, range(4))
