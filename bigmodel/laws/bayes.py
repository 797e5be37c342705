"""A Bayesian fit by NUTS (numpyro), with heavy-tailed noise that depends on scale.

ln loss = ln law(theta) + noise. The noise is Student's, with its own degrees of freedom, and its log changes
linearly with the log of the scale. Forecasts add the discrepancy of `laws.forecast`. A discrepancy inferred from
the points themselves (a random walk along the scale) is far too small, because the law bends to follow it
(`docs/laws.md`).
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from bigmodel.errors import UserError
from bigmodel.laws import forecast, uncertainty
from bigmodel.laws.fitting import Fit

WIDE = 5.0  # standard deviation of the prior of each unbounded parameter around the fit


@dataclasses.dataclass(frozen=True)
class Posterior:
  """Draws of the law's parameters, in `fit.draws`, and of the noise."""

  fit: Fit
  noise: np.ndarray  # [S, 2]: log of its scale in the middle of the runs, and its slope in the log of their scale
  freedom: np.ndarray  # [S], degrees of freedom
  divergences: int
  r_hat: float  # largest of all parameters; near 1 if the chains agree

  def predict(
    self, N: ArrayLike, D: ArrayLike, spread: forecast.Spread, level: float = 0.9, seed: int = 0
  ) -> forecast.Prediction:
    """As `forecast.Forecaster.predict`: the median of one new run's loss at each (N, D), and its interval."""
    rng = np.random.default_rng(seed)
    log_loss = np.log(self.fit.predict(N, D, theta=self.fit.draws))  # [S, points]
    scale_of_runs, scale = _scale(*self.fit.columns), _scale(N, D)
    distance = np.maximum(scale - scale_of_runs.max(), 0)
    bent = spread.discrepancy * distance * rng.normal(size=(len(log_loss), 1))
    sd = np.exp(self.noise[:, :1] + self.noise[:, 1:] * (scale - scale_of_runs.mean()))
    drawn = log_loss + bent + sd * rng.standard_t(self.freedom[:, None], size=log_loss.shape)
    low, center, high = np.exp(np.nanquantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0))
    parameters, typical_noise = np.nanstd(log_loss, axis=0), float(np.median(sd))
    return forecast.Prediction(center, low, high, parameters, spread.discrepancy * distance, typical_noise, distance)


def sample(fit: Fit, draws: int = 500, warmup: int = 500, chains: int = 2, seed: int = 0) -> Posterior:
  """Draws from the posterior, whose chains start at the fit.

  They move in coordinates in which the draws of its bootstrap are uncorrelated. Raises `UserError` without numpyro, or
  for a law of other quantities than N and D.
  """
  try:
    import numpyro
    from numpyro import distributions as dist
    from numpyro.diagnostics import gelman_rubin
    from numpyro.infer import MCMC, NUTS
  except ImportError as error:
    raise UserError("--intervals=nuts: needs numpyro; pip install 'bigmodel[bayes]'") from error
  if fit.law.columns != ("N", "D"):
    raise UserError(f"--intervals=nuts: law {fit.law.name} is of {', '.join(fit.law.columns)}, not of N and D")
  center, spread = _directions(uncertainty.bootstrap(fit, 200))
  scale = _scale(*fit.columns)
  y, typical = np.log(fit.loss), float(np.std(fit.residuals())) + 1e-6

  noise_prior = dist.Normal(jnp.array([np.log(typical), 0.0]), jnp.array([1.5, 0.3]))

  def model() -> None:
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (len(center),)))
    theta = cast(jax.Array, numpyro.deterministic("theta", center + spread @ z))
    numpyro.factor("prior", dist.Normal(center, WIDE).log_prob(theta).sum())
    noise = cast(jax.Array, numpyro.sample("noise", noise_prior.to_event(1)))
    freedom = numpyro.sample("freedom", dist.Gamma(2.0, 0.1))
    expected = jnp.log(fit.law.predict(theta, fit.columns))
    sd = jnp.exp(noise[0] + noise[1] * (scale - scale.mean()))
    numpyro.sample("y", dist.StudentT(1 + freedom, expected, sd), obs=y)

  with jax.enable_x64(True):
    start = {"z": jnp.zeros(len(center)), "noise": jnp.array([np.log(typical), 0.0]), "freedom": jnp.float64(10)}
    kernel = NUTS(model, init_strategy=numpyro.infer.init_to_value(values=start))
    mcmc = MCMC(
      kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(seed), extra_fields=("diverging",))
    samples = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    diverged = int(np.sum(np.asarray(mcmc.get_extra_fields()["diverging"])))
  r_hat = max(float(np.max(gelman_rubin(samples[name]))) for name in ("theta", "noise", "freedom"))
  flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in samples.items()}
  drawn = dataclasses.replace(fit, draws=flat["theta"])
  return Posterior(drawn, flat["noise"], 1 + flat["freedom"], diverged, r_hat)


def _scale(N: ArrayLike, D: ArrayLike) -> np.ndarray:
  """ln C up to a constant."""
  return np.log(np.asarray(N, np.float64)) + np.log(np.asarray(D, np.float64))


def _directions(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
  """The fit, and a square root of the covariance of its draws, in whose coordinates the posterior is nearly round."""
  usable = fit.draws[np.isfinite(fit.draws).all(axis=1)]
  covariance = np.cov(usable.T).reshape(len(fit.theta), -1)
  values, vectors = np.linalg.eigh(covariance)
  return fit.theta, vectors * np.sqrt(np.clip(values, 1e-8, WIDE**2))
