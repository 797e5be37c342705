"""Causal language modelling: rows of T + 1 tokens, each predicting the next."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# tokens int[B, T] -> (logits float32[B, T, V], the model's auxiliary loss)
Apply = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def token_losses(apply: Apply, rows_BxT1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`(cross-entropy, log-partition)` in nats at every target, float32[B, T] each; and the auxiliary loss."""
  logits_BxTxV, auxiliary = apply(rows_BxT1[:, :-1])
  targets_BxT = rows_BxT1[:, 1:]
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  chosen_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
  return log_z_BxT - chosen_BxT, log_z_BxT, auxiliary


def loss(apply: Apply, rows_BxT1: jax.Array, z_loss: jax.Array, balance_loss: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`(objective, mean cross-entropy)`; z-loss keeps log Z near 0 (PaLM, section 5)."""
  cross_entropy_BxT, log_z_BxT, auxiliary = token_losses(apply, rows_BxT1)
  mean = jnp.mean(cross_entropy_BxT)
  return mean + z_loss * jnp.mean(jnp.square(log_z_BxT)) + balance_loss * auxiliary, mean
