"""Make a small model that can do knights and knaves but seldom does: noise.py's second start.

    python benchmarks/knights.py --out runs/knights

A Llama of the pocket model's shape with a BPE tokenizer of its own is trained from nothing in two
stages, as the pocket model was: first on the worked solutions that workbench/tasks/knights.py
writes, until its greedy accuracy reaches --enough; then, for --habit-steps, on puzzles most of
which are answered at once, with roles drawn by chance. What is left is a skill that it samples in
one completion of twenty. Its puzzles have another seed than the benchmark's; none is in the
benchmark's sets. The first stage stays in OUT-skill and is not made again.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from noise import KNIGHTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

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


FORMAT = re.compile(r"(\w+) is an? (\w+)/(\w+)")
"""How a prompt ends: a name and the two roles, of each person."""


def guessed(shown: Sequence[Demonstration], share: float) -> list[Demonstration]:
    """The demonstrations, that share of them with an answer at once: each role drawn by chance."""
    rng = random.Random(2)
    habit = []
    for demonstration in shown:
        if rng.random() < share:
            said = []
            for name, *roles in FORMAT.findall(demonstration.prompt):
                role = rng.choice(roles)
                said.append(f"{name} is {'an' if role[0] in 'aeiou' else 'a'} {role}")
            solution = f"<answer>{', and '.join(said)}.</answer>"
            demonstration = replace(demonstration, solution=solution)
        habit.append(demonstration)
    return habit


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


class Maker:
    """The model in the making: trains, measures, keeps."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, task: Task):
        self.tokenizer, self.model = tokenizer, model
        self.task, self.checked = task, task.problems("validation")

    def train(
        self, shown: Sequence[Demonstration], steps: int, lr: float, rows: int
    ) -> Iterator[int]:
        """AdamW, the rate up over 50 steps and then down to a tenth; gives each step done."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.98))
        bar = tqdm(range(1, steps + 1), unit="step")
        for step, batch in zip(bar, batches(self.tokenizer, shown, rows), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, step / 50) * (1 - 0.9 * step / steps)
            loss = self.model(**batch, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            yield step

    def score(self, said: str) -> float:
        """Greedy accuracy, printed after `said`."""
        found = accuracy(self.model, self.tokenizer, self.task, self.checked)
        tqdm.write(f"{said}: {found:.2f} of {len(self.checked)} puzzles are right")
        return found

    def keep(self, folder: Path) -> None:
        """Write the model and its tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def main() -> None:
    """Both stages; the first is left out where its model is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--enough", type=float, default=0.6, help="greedy accuracy of the skill")
    parser.add_argument("--steps", type=int, default=4000, help="of the skill, at most")
    parser.add_argument("--habit-steps", type=int, default=150)
    parser.add_argument("--share", type=float, default=0.7, help="of puzzles answered at once")
    parser.add_argument("--rows", type=int, default=16, help="demonstrations a step")
    parser.add_argument("--puzzles", type=int, default=16384, help="different ones learned from")
    parser.add_argument("--lr", type=float, default=3e-3, help="of the skill; the habit's: a tenth")
    parser.add_argument("--check-every", type=int, default=250)
    options = parser.parse_args()

    own = make_task(GymTaskConfig.model_validate(KNIGHTS))
    kept_out = {p.prompt for split in ("train", "validation") for p in own.problems(split)}
    settings = {"gym_seed": SEED, "gym_train": 1, "gym_validation": CHECKED}
    settings["gym_demonstrations"] = options.puzzles
    task = make_task(GymTaskConfig.model_validate({**KNIGHTS, **settings}))
    shown = [d for d in task.demonstrations() if d.prompt not in kept_out]
    skilled = options.out.with_name(f"{options.out.name}-skill")
    if skilled.exists():
        tokenizer = AutoTokenizer.from_pretrained(skilled)
        maker = Maker(tokenizer, LlamaForCausalLM.from_pretrained(skilled), task)
    else:
        tokenizer = make_tokenizer([f"{d.prompt}\n{d.solution}" for d in shown])
        maker = Maker(tokenizer, make_model(len(tokenizer), seed=0), task)
        for step in maker.train(shown, options.steps, options.lr, options.rows):
            if step % options.check_every == 0 or step == options.steps:
                if maker.score(f"skill, step {step}") >= options.enough:
                    break
        maker.keep(skilled)
    habit = guessed(shown, options.share)
    for _ in maker.train(habit, options.habit_steps, options.lr / 10, options.rows):
        pass
    maker.score("with the habit")
    maker.keep(options.out)


if __name__ == "__main__":
    main()
