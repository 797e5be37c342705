"""Parameter counts of published models, each with its source."""

import importlib.util
from pathlib import Path

import pytest

from bigmodel import models, study

spec = importlib.util.spec_from_file_location("published", Path(__file__).parents[2] / "configs" / "published.py")
assert spec is not None
assert spec.loader is not None
published = importlib.util.module_from_spec(spec)
spec.loader.exec_module(published)

EXACT = {
  "gpt2_small": 124_439_808,  # Hugging Face's GPT2LMHeadModel, tied: openai-community/gpt2 and its kin
  "gpt2_medium": 354_823_168,
  "gpt2_large": 774_030_080,
  "gpt2_xl": 1_557_611_200,
  "gpt1": 116_534_784,  # Hugging Face's openai-community/openai-gpt
  "bert_base": 109_482_240,  # google-bert/bert-base-uncased: BertModel, with its pooler
  "bert_large": 335_141_888,
  "alexnet": 60_965_224,  # Krizhevsky et al. 2012: 'about 60 million'; Caffe's bvlc_alexnet has these
  "alexnet_ungrouped": 62_378_344,
  "alexnet_one_weird_trick": 61_100_840,  # torchvision.models.alexnet
  "vit_b16": 86_567_656,  # torchvision.models.vit_b_16
  "vit_l16": 304_326_632,
  "resnet18": 11_689_512,  # torchvision.models.resnet*
  "resnet34": 21_797_672,
  "resnet50": 25_557_032,
  "resnet101": 44_549_160,
  "resnet152": 60_192_808,
  "llama2_7b": 6_738_415_616,  # meta-llama/Llama-2-7b-hf
  "llama2_13b": 13_015_864_320,
  "llama2_70b": 68_976_648_192,
  "llama3_8b": 8_030_261_248,  # meta-llama/Meta-Llama-3-8B
  "llama3_70b": 70_553_706_496,
  "mistral_7b": 7_241_732_096,
  "mixtral_8x7b": 46_702_792_704,  # mistralai/Mixtral-8x7B-v0.1
  "tinyllama_1b": 1_100_048_384,
}
ROUNDED = {  # within 3.5% of what the papers say
  "gpt3_small": 125e6,  # Brown et al. 2020, table 2.1
  "gpt3_medium": 350e6,
  "gpt3_large": 760e6,
  "gpt3_xl": 1.3e9,
  "gpt3_2.7b": 2.7e9,
  "gpt3_6.7b": 6.7e9,
  "gpt3_13b": 13e9,
  "gpt3_175b": 175e9,
  "turing_nlg_17b": 17e9,  # Rosset 2020
  "gopher_280b": 280e9,  # Rae et al. 2021
  "chinchilla_70b": 70e9,  # Hoffmann et al. 2022
  "llama3_405b": 405e9,  # Grattafiori et al. 2024
  "transformer_base": 65e6,  # Vaswani et al. 2017, table 3
  "transformer_big": 213e6,
}


def counts(name):
  return models.counts_of(study.resolve_without_data(published.get_config(name)))


@pytest.mark.parametrize("name", EXACT)
def test_exact_counts(name):
  assert counts(name).params_total == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_counts_near_the_papers_rounded_ones(name):
  assert counts(name).params_total == pytest.approx(ROUNDED[name], rel=0.035)


def test_every_published_model_is_compared_with_its_count():
  assert set(published.NAMES) == set(EXACT) | set(ROUNDED)
  assert counts("mixtral_8x7b").params_active == pytest.approx(12.9e9, rel=0.01)  # Jiang et al. 2024, table 1


def test_products_of_published_image_models():
  """Multiply-adds of one forward pass, as torchvision documents them (GFLOPS there)."""
  for name, giga in {"resnet50": 4.09, "resnet18": 1.81, "alexnet_one_weird_trick": 0.71, "vit_b16": 17.56}.items():
    assert counts(name).exact_per_token / 6 == pytest.approx(giga * 1e9, rel=0.02), name
