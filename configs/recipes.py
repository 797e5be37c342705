"""Does another recipe pay off on Python source? Two studies of the same design, and how they compare.

    bigmodel study --config=configs/recipes.py:plain --workdir=runs/plain
    bigmodel study --config=configs/recipes.py:gated --workdir=runs/gated
    bigmodel compare runs/plain runs/gated --report=runs/recipes.html

`plain` is a decoder like GPT-2 (learned positions, LayerNorm, GELU), `gated` one like Llama (rotary
positions, RMSNorm, SwiGLU with feed-forward layers of as many parameters). 15 runs each over four budgets, some minutes
on 2 cores. `bigmodel compare` estimates how much compute one saves over the other, whether that grows, and where
they cross.
"""

from bigmodel.study import IsoFlop, Study, default_config

SIZES = [{"model.width": width, "model.head_size": width // 2} for width in (8, 12, 16, 20, 24, 32, 40, 48, 64)]
BUDGETS = (1e10, 2e10, 4e10, 8e10)
RECIPES = {
  "plain": {"positions": "learned", "norm": "layer", "bias": True, "activation": "gelu"},
  "gated": {"positions": "rotary", "norm": "rms", "bias": False, "activation": "swiglu"},
}


def get_config(arg=None):
  arg = arg or "gated"
  if arg not in RECIPES:
    raise ValueError(f"configs/recipes.py:{arg}: the recipes are {', '.join(RECIPES)}")
  config = default_config()
  config.data.distributions = ("flax", "grain", "jax", "numpy", "orbax-checkpoint", "polars", "pygments", "scipy")
  config.data.heldout = ("absl-py", "etils", "jinja2", "optax", "rich")
  config.data.context = 128
  config.model.update(layers=2, heads=2, qk_norm=True, **RECIPES[arg])
  config.optim.final = 0.0
  config.train.update(batch_size=4, checkpoint_every=500, log_every=20)
  config.eval.update(tokens=1 << 17, batch_size=64)
  return config


def settings(params, tokens):
  """The learning rate falls with size, as in `configs/quickstart.py`."""
  del tokens
  return {"optim.lr": float(f"{0.01 * (params / 30_000) ** -0.3:.3g}")}


def get_study(config):
  return Study(
    name=f"recipe {config.model.positions} {config.model.norm} {config.model.activation}",
    question="How much compute do rotary positions, RMSNorm and SwiGLU save over GPT-2's recipe?",
    design=IsoFlop(budgets=BUDGETS, sizes=SIZES, ratios=(6, 160)),
    settings=settings,
    laws=("chinchilla", "overtraining", "kaplan_nd"),
  )
