"""Published models: `configs/published.py:NAME`, with the batch and the tokens of their papers.

For `bigmodel plan --topology=...`: to train one, set config.data to a corpus whose
tokenizer fits the vocabulary. Parameters are counted exactly; tests hold them against
the published numbers.
"""

from bigmodel.files import UserError
from bigmodel.study import default_config

# vocab, width, layers, heads, key-value heads, feed-forward, context, rows a batch, tokens, learning rate
SHAPES = {
  "tinyllama_1b": (32_000, 2048, 22, 32, 4, 5632, 2048, 1024, 3e12, 4e-4),  # Zhang et al. 2024
  "llama2_7b": (32_000, 4096, 32, 32, 32, 11_008, 4096, 1024, 2e12, 3e-4),  # Touvron et al. 2023
  "llama2_13b": (32_000, 5120, 40, 40, 40, 13_824, 4096, 1024, 2e12, 3e-4),
  "llama2_70b": (32_000, 8192, 80, 64, 8, 28_672, 4096, 1024, 2e12, 1.5e-4),
  "mistral_7b": (32_000, 4096, 32, 32, 8, 14_336, 4096, 1024, 2e12, 3e-4),  # 2023; tokens not published
  "mixtral_8x7b": (32_000, 4096, 32, 32, 8, 14_336, 4096, 1024, 2e12, 3e-4),  # 2024; nor here
}


def get_config(arg=None):
  if arg not in SHAPES:
    raise UserError(f"configs/published.py:{arg or 'NAME'}: name one of {', '.join(SHAPES)}")
  vocab, width, layers, heads, kv_heads, feed_forward, context, rows, tokens, lr = SHAPES[arg]
  config = default_config()
  config.model.update(
    vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_size=width // heads,
    feed_forward=feed_forward, activation="swiglu", tie_embeddings=False,
  )  # fmt: skip
  if arg == "mixtral_8x7b":
    config.model.update(experts=8, experts_per_token=2, expert_group=1024)
  config.data.update(name="text_files", context=context)
  config.optim.update(lr=lr, beta2=0.95, weight_decay=0.1)
  config.train.update(tokens=int(tokens), batch_size=rows, compute_dtype="bfloat16")
  config.eval.update(tokens=rows * context, batch_size=rows)
  config.parallel.update(preset="fsdp", scan=True, remat="full")
  return config
