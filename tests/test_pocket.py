"""The embedded model is a real one, and its script makes another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.config import RunConfig
from workbench.models import POCKET_FOLDER
from workbench.policy import Policy
from workbench.probes.evaluation import greedy_accuracy
from workbench.sampling import sample
from workbench.tasks.arithmetic import ArithmeticTask


def test_pocket_model_is_a_small_float32_causal_lm():
    assert (POCKET_FOLDER / "model.safetensors").stat().st_size <= 6_000_000
    model = AutoModelForCausalLM.from_pretrained(POCKET_FOLDER)
    assert 0.5e6 <= model.num_parameters() <= 1.5e6
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(POCKET_FOLDER)
    for text in ("12+7-30=?\n", "naïve – ≤ 中 🙂 <img src=x>"):
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert max(ids) < model.config.vocab_size


def test_pocket_model_starts_between_15_and_40_percent_and_can_do_what_it_seldom_does():
    config = RunConfig.preset("pocket")
    policy = Policy(config.model, 0, baseline=False, reference=False)
    task = ArithmeticTask(config.task)
    problems = task.problems("validation")
    assert 0.15 <= greedy_accuracy(policy, "joint", task, problems, config) <= 0.40
    ids = [policy.encode_prompt("!" + p.prompt) for p in problems[:32]]  # '!' asks for the working
    done = sample(
        policy.model,
        policy.tokenizer,
        ids,
        noise=None,
        sequences=range(32),
        end_ids=policy.end_ids,
        max_new_tokens=80,
        environments=None,
    )
    solved = sum(task.reward(text, p) for text, p in zip(done.texts, problems[:32], strict=True))
    assert solved / 32 > 0.9


def test_script_makes_a_model_that_the_workbench_loads(tmp_path: Path):
    out = tmp_path / "model"
    options = ["--skill-steps", "3", "--habit-steps", "2", "--rows", "2", "--threads", "1"]
    subprocess.run(
        [sys.executable, "-m", "workbench.pocket.make", "--out", str(out), *options],
        check=True,
        capture_output=True,
        timeout=300,
    )
    made = Policy(
        RunConfig.preset("pocket", path=str(out)).model, 0, baseline=False, reference=False
    )
    shipped = AutoModelForCausalLM.from_pretrained(POCKET_FOLDER)
    assert {n: p.shape for n, p in made.base.items()} == {
        n: p.shape for n, p in shipped.named_parameters()
    }
