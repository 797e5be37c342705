"""Published models: `configs/published.py:NAME`, with the batch and the length of training of their papers.

For `bigmodel plan --topology=...` and `bigmodel models`: to train one, set config.data to data
whose vocabulary or images fit. Parameters are counted exactly; tests compare them with the
published numbers. If a paper omits a value or contradicts itself, a comment states the choice.
"""

from bigmodel.errors import UserError
from bigmodel.study import default_config

# width, layers, heads, key-value heads, feed-forward, context, vocabulary, rows a batch, tokens, learning rate
LLAMAS = {
  "tinyllama_1b": (2048, 22, 32, 4, 5632, 2048, 32_000, 1024, 3e12, 4e-4),  # Zhang et al. 2024
  "llama2_7b": (4096, 32, 32, 32, 11_008, 4096, 32_000, 1024, 2e12, 3e-4),  # Touvron et al. 2023
  "llama2_13b": (5120, 40, 40, 40, 13_824, 4096, 32_000, 1024, 2e12, 3e-4),
  "llama2_70b": (8192, 80, 64, 8, 28_672, 4096, 32_000, 1024, 2e12, 1.5e-4),
  "llama3_8b": (4096, 32, 32, 8, 14_336, 8192, 128_256, 512, 15e12, 3e-4),  # Grattafiori et al. 2024, table 3
  "llama3_70b": (8192, 80, 64, 8, 28_672, 8192, 128_256, 1024, 15e12, 1.5e-4),
  "llama3_405b": (16_384, 126, 128, 8, 53_248, 8192, 128_256, 2048, 15.6e12, 8e-5),
  "mistral_7b": (4096, 32, 32, 8, 14_336, 4096, 32_000, 1024, 2e12, 3e-4),  # 2023; tokens not published
  "mixtral_8x7b": (4096, 32, 32, 8, 14_336, 4096, 32_000, 1024, 2e12, 3e-4),  # Jiang et al. 2024; tokens not published
}
# width, layers, heads, head size, context, vocabulary, rows a batch, tokens, learning rate
GPTS = {
  "gpt1": (768, 12, 12, 64, 512, 40_478, 64, 1e11, 2.5e-4),  # Radford et al. 2018; 100 epochs of about 1e9 tokens
  # Radford et al. 2019: four sizes, rows of 1,024, batches of 512; neither tokens nor rates are given.
  "gpt2_small": (768, 12, 12, 64, 1024, 50_257, 512, 10e9, 6e-4),
  "gpt2_medium": (1024, 24, 16, 64, 1024, 50_257, 512, 10e9, 3e-4),
  "gpt2_large": (1280, 36, 20, 64, 1024, 50_257, 512, 10e9, 2.5e-4),
  "gpt2_xl": (1600, 48, 25, 64, 1024, 50_257, 512, 10e9, 2e-4),
  # Brown et al. 2020, table 2.1. XL: the published 24 heads of 128 contradict the width of 2,048 and would give 1.5B
  # parameters; 16 heads of 128 give the published 1.3B. 13B: the published width of 5,140 is not 40 heads of 128.
  "gpt3_small": (768, 12, 12, 64, 2048, 50_257, 256, 300e9, 6e-4),
  "gpt3_medium": (1024, 24, 16, 64, 2048, 50_257, 256, 300e9, 3e-4),
  "gpt3_large": (1536, 24, 16, 96, 2048, 50_257, 256, 300e9, 2.5e-4),
  "gpt3_xl": (2048, 24, 16, 128, 2048, 50_257, 512, 300e9, 2e-4),
  "gpt3_2.7b": (2560, 32, 32, 80, 2048, 50_257, 512, 300e9, 1.6e-4),
  "gpt3_6.7b": (4096, 32, 32, 128, 2048, 50_257, 1024, 300e9, 1.2e-4),
  "gpt3_13b": (5120, 40, 40, 128, 2048, 50_257, 1024, 300e9, 1e-4),
  "gpt3_175b": (12_288, 96, 96, 128, 2048, 50_257, 1600, 300e9, 0.6e-4),
  # Rosset 2020: 78 layers of 4,256 with 28 heads, batches of 512 rows of 1,024, 300,000 steps.
  "turing_nlg_17b": (4256, 78, 28, 152, 1024, 50_257, 512, 512 * 1024 * 300_000, 1.5e-4),
  # Rae et al. 2021, table 1; Hoffmann et al. 2022, table 4. Relative positions add a matrix per layer; without these,
  # 280B would be 258B and 70B would be 65B.
  "gopher_280b": (16_384, 80, 128, 128, 2048, 32_000, 1536, 300e9, 4e-5),
  "chinchilla_70b": (8192, 80, 64, 128, 2048, 32_000, 768, 1.4e12, 1e-4),
}
# width, layers, heads
BERTS = {"bert_base": (768, 12, 12), "bert_large": (1024, 24, 16)}  # Devlin et al. 2019
# Vaswani et al. 2017, table 3: width, heads, feed-forward, dropout, steps. Their vocabulary has about 37,000 tokens.
TRANSFORMERS = {
  "transformer_base": (512, 8, 2048, 0.1, 100_000),
  "transformer_big": (1024, 16, 4096, 0.3, 300_000),
}
# patch, width, layers, heads: Dosovitskiy et al. 2021, table 1, for 224 pixels
VITS = {"vit_b16": (16, 768, 12, 12), "vit_l16": (16, 1024, 24, 16)}
# stages of bottlenecks, or of basic blocks: He et al. 2016, table 1
RESNETS = {
  "resnet18": ("basic", (2, 2, 2, 2)),
  "resnet34": ("basic", (3, 4, 6, 3)),
  "resnet50": ("bottleneck", (3, 4, 6, 3)),
  "resnet101": ("bottleneck", (3, 4, 23, 3)),
  "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
# Krizhevsky et al. 2012, with crops of 227 pixels, which its sizes need; Krizhevsky 2014, as in torchvision
ALEXNETS = {
  "alexnet": ("grouped", 227),
  "alexnet_ungrouped": ("ungrouped", 227),
  "alexnet_one_weird_trick": ("one_weird_trick", 224),
}
NAMES = (*LLAMAS, *GPTS, *BERTS, *TRANSFORMERS, *VITS, *RESNETS, *ALEXNETS)
IMAGENET = 1_281_167


def get_config(arg=None):
  if arg in LLAMAS:
    return llama(arg, *LLAMAS[arg])
  if arg in GPTS:
    return gpt(arg, *GPTS[arg])
  if arg in BERTS:
    return bert(*BERTS[arg])
  if arg in TRANSFORMERS:
    return transformer(*TRANSFORMERS[arg])
  if arg in (*VITS, *RESNETS, *ALEXNETS):
    return image_model(arg)
  raise UserError(f"configs/published.py:{arg or 'NAME'}: name one of {', '.join(NAMES)}")


def llama(name, width, layers, heads, kv_heads, feed_forward, context, vocab, rows, tokens, lr):
  config = default_config()
  config.model.update(
    vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_size=width // heads,
    feed_forward=feed_forward, activation="swiglu", tie_embeddings=False, epsilon=1e-5,
  )  # fmt: skip
  if name.startswith("llama3"):
    config.model.rotary_base = 500_000.0
  if name == "mixtral_8x7b":
    config.model.update(experts=8, experts_per_token=2, expert_group=1024, rotary_base=1e6)
  return on_text(config, context, rows, tokens, lr)


def gpt(name, width, layers, heads, head_size, context, vocab, rows, tokens, lr):
  config = default_config()
  config.model.update(
    vocab=vocab, width=width, layers=layers, heads=heads, head_size=head_size, feed_forward=4 * width,
    activation="gelu", norm="layer", bias=True, positions="learned", epsilon=1e-5,
  )  # fmt: skip
  if name == "gpt1":
    config.model.update(norm_first=False, dropout=0.1)
  if name in ("gopher_280b", "chinchilla_70b"):
    config.model.update(norm="rms", bias=False, positions="relative")
  return on_text(config, context, rows, tokens, lr)


def bert(width, layers, heads):
  """The encoder and its pooler, as in the published counts; use model.head=masked_lm for pre-training."""
  config = default_config("bert")
  config.model.update(
    vocab=30_522, width=width, layers=layers, heads=heads, head_size=width // heads, feed_forward=4 * width,
    positions=512, dropout=0.1, head="pooler",
  )  # fmt: skip
  config.task.mask_token = 103
  config.optim.update(weight_decay=0.01, beta2=0.999)
  return on_text(config, 512, 256, 256 * 512 * 1_000_000, 1e-4)


def transformer(width, heads, feed_forward, dropout, steps):
  config = default_config("transformer")
  config.model.update(
    vocab=37_000, width=width, layers=6, heads=heads, head_size=width // heads, feed_forward=feed_forward,
    dropout=dropout,
  )  # fmt: skip
  config.optim.update(beta2=0.98, epsilon=1e-9)
  # The paper's batches have about 25,000 tokens per side, in pairs of sentences; here a row of 256 holds a pair.
  return on_text(config, 256, 196, 196 * 256 * steps, 7e-4)


def on_text(config, context, rows, tokens, lr):
  config.data.update(name="text_files", context=context)
  config.optim.lr = lr
  config.train.update(tokens=int(tokens), batch_size=rows, compute_dtype="bfloat16")
  config.eval.update(tokens=rows * context, batch_size=rows)
  config.parallel.update(preset="fsdp", scan=True, remat="full")
  return config


def image_model(name):
  """Images of 1,000 classes; epochs and batches of the papers."""
  if name in VITS:
    patch, width, layers, heads = VITS[name]
    config, rows, epochs, lr, side = default_config("vit"), 4096, 300, 3e-3, 224
    config.model.update(
      patch=patch, width=width, layers=layers, heads=heads, head_size=width // heads, feed_forward=4 * width,
      dropout=0.1,
    )  # fmt: skip
  elif name in RESNETS:
    block, stages = RESNETS[name]
    config, rows, epochs, lr, side = default_config("resnet"), 256, 120, 1e-3, 224
    config.model.update(block=block, stages=stages, width=64, stem="large")
  else:
    form, side = ALEXNETS[name]
    config, rows, epochs, lr = default_config("alexnet"), 128, 90, 1e-3
    config.model.form = form
  config.model.update(inputs=(side, side, 3), outputs=1000)
  config.data.update(name="arrays", path="imagenet.npz")
  config.optim.lr = lr
  config.train.update(tokens=epochs * IMAGENET, batch_size=rows, compute_dtype="bfloat16")
  config.eval.update(tokens=50_000, batch_size=rows)
  return config
