"""Make the pocket model from nothing: `python -m workbench.pocket.make --out DIR`.

A 0.67 M-parameter Llama with a byte tokenizer, trained on generated chained arithmetic in two
stages (`SKILL`, then `HABIT`) for about half an hour on two CPU cores. The mixes are made so that
the *base* model can do something that it seldom does:

- it can add, and it can work out a chain of any length, when the prompt begins with '!';
- on a plain prompt it gives the answer at once (mostly wrong), or works out a three-term chain,
  or, on longer chains, stops its working after two steps and gives a wrong answer. Full working of
  a plain long chain is a few in ten thousand.

RL finds "work out three terms" soon and "do not stop after two steps" late, since it hardly ever
samples it; demonstrations show it at once. README.md beside this file has the measured curves.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.tasks.arithmetic import (
    HIGH,
    LOW,
    OPERAND_MAX,
    draw_chain,
    extract_answer,
    write_prompt,
    write_solution,
    write_steps,
)

ROW = 160  # tokens a packed row holds
MAX_POSITIONS = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""A prompt is one line; what follows is the completion."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte plus <pad> <bos> <eos>: any text has a code, nothing is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
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


def make_model(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """An untrained Llama, 3 layers of width 128, weights drawn from `seed`."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers draws initial weights from the global state only
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of document, and of the styles within plain prompts."""

    two_terms: float
    """Worked two-term sums whose first operand is any running total: arithmetic."""
    asked: float
    """Prompts that begin with '!', 3 to 7 terms, always worked out in full."""
    three_terms: float
    """Plain three-term prompts; the rest have four to seven."""
    three_worked: float
    """Share of plain three-term prompts that are worked out; the rest get the answer at once."""
    long_stopped: float
    """Share of plain longer prompts whose working stops after two steps, with a wrong answer."""
    long_worked: float
    """Share of plain longer prompts worked out in full; the rest get the answer at once."""


SKILL = Mix(0.35, 0.30, 0.15, 0.45, 0.47, 0.03)
HABIT = Mix(0.15, 0.25, 0.20, 0.45, 0.70, 0.0003)


def draw_document(rng: random.Random, mix: Mix) -> tuple[str, str]:
    """One (prompt, completion) of a mix."""
    kind = rng.random()
    if kind < mix.two_terms:
        first = rng.randint(LOW, HIGH)
        term = rng.choice((-1, 1)) * rng.randint(1, OPERAND_MAX)
        while not LOW <= first + term <= HIGH:
            term = rng.choice((-1, 1)) * rng.randint(1, OPERAND_MAX)
        terms = [first, term]
        return write_prompt(terms), write_solution(write_steps(terms), sum(terms))
    kind -= mix.two_terms
    if kind < mix.asked:
        terms = draw_chain(rng, rng.randint(3, 7))
        return "!" + write_prompt(terms), write_solution(write_steps(terms), sum(terms))
    kind -= mix.asked
    terms = draw_chain(rng, 3 if kind < mix.three_terms else rng.randint(4, 7))
    steps, style = write_steps(terms), rng.random()
    if len(terms) == 3:
        worked = style < mix.three_worked
        return write_prompt(terms), write_solution(steps if worked else [], sum(terms))
    if style < mix.long_stopped:
        return write_prompt(terms), write_solution(steps[:2], sum(terms[:3]))
    if style < mix.long_stopped + mix.long_worked:
        return write_prompt(terms), write_solution(steps, sum(terms))
    return write_prompt(terms), write_solution([], sum(terms))


def pack_rows(
    rng: random.Random, mix: Mix, tokenizer: PreTrainedTokenizerFast, n_rows: int
) -> dict[str, torch.Tensor]:
    """Pack documents into rows of ROW tokens; each attends to itself only.

    Returns input_ids, labels (-100 outside completions), position_ids, all (n_rows, ROW), and a
    boolean attention_mask (n_rows, 1, ROW, ROW).
    """
    ids = torch.zeros(n_rows, ROW, dtype=torch.long)
    labels = torch.full((n_rows, ROW), -100)
    positions = torch.zeros(n_rows, ROW, dtype=torch.long)
    document = torch.zeros(n_rows, ROW, dtype=torch.long)
    for row in range(n_rows):
        at = count = 0
        while True:
            prompt, completion = draw_document(rng, mix)
            head = tokenizer.encode(prompt + "\n")  # as the chat template writes it
            tail = [*tokenizer.encode(completion, add_special_tokens=False), 2]
            end = at + len(head) + len(tail)
            if end > ROW:
                break
            count += 1
            ids[row, at:end] = torch.tensor(head + tail)
            labels[row, at + len(head) : end] = torch.tensor(tail)
            positions[row, at:end] = torch.arange(end - at)
            document[row, at:end] = count
            at = end
    causal = torch.ones(ROW, ROW, dtype=torch.bool).tril()
    mask = causal & (document[:, :, None] == document[:, None, :])
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "attention_mask": mask[:, None],
    }


@torch.no_grad()
def greedy_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, terms: int, prefix: str, seed: int
) -> float:
    """Greedy accuracy on 64 fresh problems with `terms` terms."""
    rng = random.Random(f"check/{seed}/{terms}")
    chains = [draw_chain(rng, terms) for _ in range(64)]
    batch = tokenizer(
        [f"{prefix}{write_prompt(c)}\n" for c in chains], return_tensors="pt", padding=True
    )
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=96,
        do_sample=False,
    )
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(extract_answer(t) == str(sum(c)) for t, c in zip(texts, chains, strict=True)) / 64


def train(
    name: str,
    mix: Mix,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    steps: int,
    rows: int,
    lr: float,
    seed: int,
    report_every: int,
) -> None:
    """One stage: AdamW with warm-up and cosine decay on a mix; writes to `out` at each report."""
    rng = random.Random(f"pocket/{name}/{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = min(200, steps // 10 + 1)
    started = time.time()
    bar = tqdm(range(1, steps + 1), desc=name, dynamic_ncols=True)
    for step in bar:
        scale = min(step / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        loss = model(**pack_rows(rng, mix, tokenizer, rows), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % report_every == 0 or step == steps:
            plain = [greedy_accuracy(model, tokenizer, n, "", seed) for n in (2, 3, 4, 5, 6, 7)]
            asked = [greedy_accuracy(model, tokenizer, n, "!", seed) for n in (3, 5, 7)]
            tqdm.write(
                f"{name} {step} {time.time() - started:.0f}s loss {loss.item():.4f} "
                "greedy, 2-7 terms: "
                + " ".join(f"{a:.2f}" for a in plain)
                + " | asked to work, 3 5 7 terms: "
                + " ".join(f"{a:.2f}" for a in asked)
            )
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)


def main() -> None:
    """Parse the command line and run both stages."""
    parser = argparse.ArgumentParser(description="Make the pocket model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--start", type=Path, help="skip the first stage: begin with this model")
    parser.add_argument("--skill-steps", type=int, default=4000)
    parser.add_argument("--habit-steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=40, help=f"packed rows of {ROW} tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    common = {"rows": args.rows, "seed": args.seed, "report_every": args.report_every}
    tokenizer = make_tokenizer()
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start)
    else:
        model = make_model(len(tokenizer), args.seed)
        train("skill", SKILL, model, tokenizer, args.out, steps=args.skill_steps, lr=3e-3, **common)
    train("habit", HABIT, model, tokenizer, args.out, steps=args.habit_steps, lr=1e-3, **common)


if __name__ == "__main__":
    main()
