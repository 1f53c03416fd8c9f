"""A tiny random Policy whose base, baseline and coordinator all differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.config import ModelConfig
from workbench.pocket.make import make_tokenizer
from workbench.policy import Policy


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(model_folder: Path) -> Policy:
    """Untrained weights moved at random, so that no two policies are equal."""
    config = ModelConfig(path=str(model_folder), device="cpu", lora_rank=3, lora_alpha=6.0)
    policy = Policy(config, seed=0, baseline=True, reference=True)
    generator = torch.Generator().manual_seed(1)

    def move(parameter: torch.Tensor, by: float) -> None:
        parameter.data += by * torch.randn(parameter.shape, generator=generator)

    for parameter in policy.base.values():
        move(parameter, 0.05)
    for parameter in policy.baseline_base.values():
        move(parameter, 0.05)
    for parameter in policy.coordinator.values():
        move(parameter, 0.1)
    return policy
