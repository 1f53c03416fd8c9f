"""What the instruments cost: seconds and memory of a step with none, the default ones, all of them.

    python benchmarks/probes.py                         # the pocket model
    python benchmarks/probes.py --model random          # 30 M parameters, random weights
    python benchmarks/probes.py --ghost 64              # per-sample products of 64 demonstrations
    python benchmarks/probes.py --ghost 64 --model random

Probes change nothing in a run, so step n does the same work in each variant: its seconds are
compared step by step. Each variant runs in a process of its own, the variants in turn and all of it
--rounds times, so a busy machine slows them alike. Seconds are the run's own `seconds/…` metrics;
memory is the largest resident size of the process. Evaluation, which has a schedule of its own, is
left out.

--ghost counts the processor's seconds on one thread, in micro-batches as a step makes them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

OFF: dict[str, Any] = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}
ALL = {name: 1 for name in OFF} | {"rollout_alignment_every": 1, "evaluate_every": 0}
VARIANTS: dict[str, dict[str, Any]] = {"none": OFF, "default": {"evaluate_every": 0}, "all": ALL}


def save_random_model(folder: Path) -> None:
    """A Llama of 30 M parameters with random weights and the pocket model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from workbench.models import POCKET_FOLDER

    tokenizer = AutoTokenizer.from_pretrained(POCKET_FOLDER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_variant(settings: dict[str, Any], method: str, steps: int) -> tuple[list[dict], float]:
    """(one row of seconds a step, peak memory in MB) of one run. Runs in a process of its own.

    The column `processor` holds processor seconds, which other work on the machine hardly changes.
    """
    from workbench import RunConfig, Session

    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.preset("pocket", method=method, snapshot_every=10**6, **settings)
        with Session(config, run_dir=Path(folder) / "run") as session:
            marks = [time.process_time()]
            for _ in range(steps):
                session.step()
                marks.append(time.process_time())
            frame = session.frame("metrics").assign(processor=np.diff(marks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    columns = ["step", "processor", *frame.filter(like="seconds/").columns]
    return frame[columns].to_dict("records"), peak


def in_own_process(function: Any, *arguments: Any) -> Any:
    """The function's value, computed in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_steps(args: argparse.Namespace, model: dict[str, Any]) -> str:
    """The table of a step's seconds and memory."""
    rows: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    peaks: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tqdm(total=args.rounds * len(VARIANTS), desc="runs") as bar:
        for _ in range(args.rounds):
            for name, settings in VARIANTS.items():
                found, peak = in_own_process(
                    run_variant, {**settings, **model}, args.method, args.warmup + args.steps
                )
                rows[name] += [row for row in found if row["step"] > args.warmup]
                peaks[name].append(peak)
                bar.update()
    frames = {name: pd.DataFrame(found) for name, found in rows.items()}
    lines = ["| seconds | " + " | ".join(VARIANTS) + " |", "|---|" + "---|" * len(VARIANTS)]
    last = {"seconds/total": "total", "processor": "processor seconds"}
    names = dict.fromkeys(name for f in frames.values() for name in f if name != "step")
    for name in [*(n for n in names if n not in last), *last]:
        cells = [_seconds(frame.get(name)) for frame in frames.values()]
        lines.append(f"| {last.get(name, name.removeprefix('seconds/'))} | {' | '.join(cells)} |")
    for name, label in last.items():
        plain = frames["none"][name].sum()
        ratios = [f"{frame[name].sum() / plain:.2f}" for frame in frames.values()]
        lines.append(f"| **{label}, against none** | {' | '.join(ratios)} |")
    memory = [statistics.median(found) for found in peaks.values()]
    cells = [f"{m:.0f} MB ({m / memory[0]:.2f})" for m in memory]
    lines.append(f"| peak memory | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(values: pd.Series | None) -> str:
    if values is None or values.isna().all():
        return "–"
    values = values.dropna()
    return f"{values.mean():.3f} ({values.quantile(0.1):.3f}–{values.quantile(0.9):.3f})"


def time_ghost(model: dict[str, Any], n: int, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a plain batch gradient, of PerSample and of a pass a sample, in turn.

    Runs in a process of its own. `difference` is the largest relative difference of the products.
    """
    import torch

    from workbench import RunConfig
    from workbench.policy import Policy
    from workbench.probes.ghost import PerSample
    from workbench.sampling import completion_logits, pack, token_logprobs
    from workbench.tasks import make_task

    torch.set_num_threads(1)  # process_time counts threads that wait, too
    config = RunConfig.preset("pocket", n_demonstrations=n, **model)
    policy = Policy(config.model, 0, baseline=False, reference=False)
    demos = make_task(config.task).demonstrations()
    prompts = [policy.encode_prompt(d.prompt) for d in demos]
    tokens = pack(prompts, [policy.encode_completion(d.solution) for d in demos], policy.pad_id)
    batches = tokens.micro_batches(0, n, config.training.micro_batch_tokens)
    generator = torch.Generator().manual_seed(0)
    weights = {**policy.base}
    direction = {k: torch.randn(p.shape, generator=generator) for k, p in weights.items()}

    def gradient(rows: list[int]) -> dict[str, torch.Tensor]:
        part = tokens.select(rows)
        value = token_logprobs(completion_logits(policy.model, part), part).sum()
        return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))

    def plain() -> torch.Tensor:
        for rows in batches:
            gradient(rows)
        return torch.zeros(n)

    def ghost() -> torch.Tensor:
        inner = torch.zeros(n, dtype=torch.float64)
        for rows in batches:
            with PerSample(policy.model, direction, len(rows), parameters=weights) as found:
                gradient(rows)
            inner[rows] = found.inner["all"].double()
        return inner

    def naive() -> torch.Tensor:
        found = []
        for row in range(n):
            g = gradient([row])
            found.append(sum((g[k] * direction[k]).sum() for k in weights))
            sum(g[k].square().sum() for k in weights)  # the norm, which PerSample also gives
        return torch.stack(found)

    seconds: dict[str, list[float]] = {"plain": [], "ghost": [], "naive": []}
    products = {}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, work in (("plain", plain), ("ghost", ghost), ("naive", naive)):
            started = time.process_time()
            products[name] = work()
            seconds[name].append(time.process_time() - started)
    a, b = products["ghost"], products["naive"].double()
    result = {name: values[1:] for name, values in seconds.items()}
    result["difference"] = [float(((a - b).abs() / b.abs().mean()).max())]
    return result


def measure_ghost(args: argparse.Namespace, model: dict[str, Any]) -> str:
    """The table of per-sample products against the naive loop."""
    found = in_own_process(time_ghost, model, args.ghost, args.rounds * 3)
    plain, ghost, naive = (np.array(found[name]) for name in ("plain", "ghost", "naive"))
    labels = {
        "the gradient of the batch, no per-sample numbers": plain,
        "the same passes with every product and norm": ghost,
        "… what they add": ghost - plain,
        "one backward pass a demonstration, with both": naive,
    }
    lines = [f"| {args.ghost} demonstrations | seconds, median (range) |", "|---|---|"]
    for label, values in labels.items():
        cell = f"{np.median(values):.3f} ({values.min():.3f}–{values.max():.3f})"
        lines.append(f"| {label} | {cell} |")
    whole, added = np.median(naive / ghost), np.median(naive) / np.median(ghost - plain)
    return "\n".join(lines) + (
        f"\n\nNaive over ghost: {whole:.1f}; over what ghost adds to passes that a step makes "
        f"anyway: {added:.1f}.\n"
        f"Largest difference {found['difference'][0]:.1e} of a mean product, float32."
    )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=["pocket", "random"], default="pocket")
    parser.add_argument("--method", default="bridge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ghost", type=int, default=0, metavar="N", help="time N demonstrations")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model: dict[str, Any] = {}
        if args.model == "random":
            in_own_process(save_random_model, Path(folder) / "model")
            model = {"path": str(Path(folder) / "model"), "micro_batch_tokens": 1024}
            if not args.ghost:  # completions of random weights run on to the limit
                model |= {"prompts_per_step": 4, "max_new_tokens": 32, "paired_prompts": 4}
        print((measure_ghost if args.ghost else measure_steps)(args, model))
    import torch

    shown = {name: value for name, value in model.items() if name != "path"}
    what = (
        f"{args.rounds * 3} rounds, one thread, processor seconds"
        if args.ghost
        else f"method `{args.method}`, {args.rounds} rounds of {args.steps} steps after "
        f"{args.warmup}, mean (10–90 %)"
    )
    print(
        f"\nModel `{args.model}`{' with ' + json.dumps(shown) if shown else ''}; {what}; "
        f"{'' if args.ghost else f'{torch.get_num_threads()} threads, '}"
        f"torch {torch.__version__}, {platform.machine()}."
    )


if __name__ == "__main__":
    main()
