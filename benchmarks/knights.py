"""Make a small model that knows knights and knaves a little: the start of noise.py's second part.

    python benchmarks/knights.py --out runs/knights-model

A Llama of the pocket model's shape with a BPE tokenizer of its own learns, from nothing, the worked
solutions that workbench/tasks/knights.py writes. Its puzzles have another seed than the
benchmark's; none is in the benchmark's sets. It stops where its greedy accuracy reaches --enough:
the format is then known, and half of the puzzles are still wrong.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from noise import KNIGHTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.config import GymTaskConfig
from workbench.pocket.make import CHAT_TEMPLATE, MAX_POSITIONS, make_model
from workbench.tasks import Demonstration, Problem, Task, make_task

SEED = 1
"""Of the puzzles learned from, `gym_seed`; the benchmark's is 0."""
CHECKED = 64
"""Puzzles that an accuracy is measured on."""


def make_tokenizer(texts: Sequence[str], size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` tokens learned from `texts`: words of this task are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, shown: Sequence[Demonstration], rows: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Random demonstrations without end, padded right; the loss is of the solution alone."""
    rng = random.Random(0)
    coded = []
    for d in shown:
        head = tokenizer.encode(f"<bos>{d.prompt}\n", add_special_tokens=False)
        tail = tokenizer.encode(f"{d.solution}<eos>", add_special_tokens=False)
        coded.append((len(head), head + tail))
    coded.sort(key=lambda one: len(one[1]))  # rows of a batch are about as long as each other
    while True:
        at = rng.randrange(len(coded) - rows + 1)
        some = coded[at : at + rows]
        longest = max(len(ids) for _, ids in some)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in some])
        labels = ids.masked_fill(ids == 0, -100)
        for row, (head_length, _) in enumerate(some):
            labels[row, :head_length] = -100
        yield {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    problems: Sequence[Problem],
) -> float:
    """Greedy accuracy."""
    heads = [f"<bos>{p.prompt}\n" for p in problems]
    batch = tokenizer(heads, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=192,
        do_sample=False,
    )
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [task.reward(t, p) for t, p in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    """Train until the accuracy is enough, or the steps are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--enough", type=float, default=0.6, help="greedy accuracy to stop at")
    parser.add_argument("--steps", type=int, default=4000, help="at most so many")
    parser.add_argument("--rows", type=int, default=16, help="demonstrations a step")
    parser.add_argument("--puzzles", type=int, default=16384, help="different ones learned from")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--check-every", type=int, default=250)
    options = parser.parse_args()

    own = make_task(GymTaskConfig.model_validate(KNIGHTS))
    kept_out = {p.prompt for split in ("train", "validation") for p in own.problems(split)}
    settings = {"gym_seed": SEED, "gym_train": 1, "gym_validation": CHECKED}
    settings["gym_demonstrations"] = options.puzzles
    task = make_task(GymTaskConfig.model_validate({**KNIGHTS, **settings}))
    shown = [d for d in task.demonstrations() if d.prompt not in kept_out]
    checked = task.problems("validation")
    tokenizer = make_tokenizer([f"{d.prompt}\n{d.solution}" for d in shown])
    model = make_model(len(tokenizer), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98))
    started, found = time.time(), 0.0
    bar = tqdm(range(1, options.steps + 1), desc=f"{model.num_parameters():,} parameters")
    for step, batch in zip(bar, batches(tokenizer, shown, options.rows), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, step / 50) * (1 - 0.9 * step / options.steps)
        loss = model(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{found:.2f}")
        if step % options.check_every == 0 or step == options.steps:
            found = accuracy(model, tokenizer, task, checked)
            tqdm.write(f"{step} {time.time() - started:.0f}s {loss.item():.4f} {found:.2f}")
            model.save_pretrained(options.out)
            tokenizer.save_pretrained(options.out)
            if found >= options.enough:
                break


if __name__ == "__main__":
    main()
