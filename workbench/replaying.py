"""How a step is executed again in a scratch copy; what comes out of it: workbench/replay.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd

from workbench.config import RunConfig
from workbench.engine import Again, Engine
from workbench.probes.tokens import n_learned, terms_known, token_frame, token_terms
from workbench.probes.trace import (
    LayerTrace,
    UpdateRow,
    Weights,
    copied,
    token_shift,
    update_rows,
)
from workbench.records import RolloutRow, StepRecord
from workbench.replay import (
    LAYERS,
    UPDATES,
    Replay,
    as_differences,
    compare_records,
)
from workbench.sampling import TokenBatch, pack
from workbench.store import RunFolderError, Snapshot
from workbench.tasks.environment import POLICY
from workbench.training.batches import pack_demonstrations
from workbench.training.gradients import NonFiniteError

TRACED = {"alignment_every": 1, "rollout_alignment_every": 1, "token_views_every": 1}
"""Probes that a traced step has, whatever the config says; they change no number of training."""

OnTheWay = Callable[[int, int], None]
"""Called in the worker's thread with each step that is begun, and the step asked for."""


def replay(
    engine: Engine,
    step: int,
    *,
    trace: bool,
    changes: dict[str, Any],
    again: Again,
    progress: OnTheWay | None = None,
) -> Replay:
    """Execute a step again in a scratch copy of the engine, under other settings where asked.

    `step` may be the one after the last: what the run would do next. Raises RunFolderError where
    there is no such step, ConfigError where the changes cannot be made, whatever `again` raises.
    """
    first, last = engine.first_step + 1, engine.store.last_step()
    if not first <= step <= last + 1:
        where = f"there are steps {first} to {last}, and {last + 1} would be the next"
        reason = f" (this run was forked at {first - 1})" if first > 1 else ""
        raise RunFolderError(f"step {step}: {where}{reason}")
    engine.check_changes(changes)

    begun: list[int] = []

    def told(number: int, to_step: int, phase: str) -> None:
        again(number, step, phase)
        if progress is not None and phase == "rollouts" and (not begun or begun[-1] != number):
            begun.append(number)
            progress(number, step)

    on_the_way: list[int] = []
    scratch = engine.scratch()
    nearest = scratch.travel(step - 1, told, lambda number, different: on_the_way.append(number))
    if changes:
        scratch.change(scratch.changed_config(changes), told)
    config = scratch.config
    start = scratch.snapshot() if trace else None
    made: StepRecord | None
    made, error = _make(scratch, step, told)
    recorded = engine.recorded(step) if step <= last else None
    rows: list[list[Any]] = []
    compared = ""
    if made is not None and recorded is not None:
        rows, compared = compare_records(recorded, made)
        if step in engine.store.snapshot_steps():
            rows += _weights_apart(engine.store.load_snapshot(step), scratch.snapshot())
            compared += f", weights and optimizers of snapshot {step}"
    layers = LayerTrace(scratch.policy)
    updates: list[UpdateRow] = []
    tokens = pd.DataFrame()
    if start is not None:  # once more: with more probes others give better numbers, not the same
        scratch.restore(start)
        scratch.use(config.with_changes(**TRACED))
        before = copied(scratch.policy)
        scratch.trainer.watch = layers.watch
        made, error = _make(scratch, step, told)
        if made is not None:
            updates = update_rows(before, scratch.policy)
            tokens = _tokens(scratch, before, made, config)
    return Replay(
        step=step,
        changes=changes,
        config=config,
        from_snapshot=nearest,
        record=made,
        recorded=recorded,
        error=error,
        differences=as_differences(rows),
        compared=compared,
        on_the_way=on_the_way,
        layers=pd.DataFrame(map(astuple, layers.rows()), columns=list(LAYERS)),
        updates=pd.DataFrame(map(astuple, updates), columns=list(UPDATES)),
        tokens=tokens,
    )


def _make(engine: Engine, step: int, again: Again) -> tuple[StepRecord | None, str]:
    """What the step measured, or why it was not applied."""
    try:
        record = engine.make(step, lambda phase: again(step, step, phase))
    except NonFiniteError as error:
        return None, f"step {step} was not applied: {error}"
    engine.step_number = step
    return record, ""


def _weights_apart(then: Snapshot, now: Snapshot) -> list[list[Any]]:
    """Rows of `differences` for the arrays of two snapshots, one a file."""
    rows: list[list[Any]] = []
    for file in sorted(then.tensors.keys() & now.tensors.keys()):
        old, new = then.tensors[file], now.tensors[file]
        apart = [n for n in old if n not in new or not np.array_equal(old[n], new[n])]
        if apart or old.keys() != new.keys():
            sizes = (
                float(np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in f.values())))
                for f in (old, new)
            )
            a, b = sizes
            relative = abs(a - b) / max(a, b) if max(a, b) else 0.0
            rows.append([f"weights/{file}", a, b, b - a, relative, max(1, len(apart))])
    return rows


def _tokens(engine: Engine, before: Weights, record: StepRecord, config: RunConfig) -> pd.DataFrame:
    """`Replay.tokens`."""
    rollouts = [row for row in record.rollouts if row.purpose == "train"]
    frames: list[pd.DataFrame]
    if rollouts:
        policy, device = engine.policy, engine.policy.device
        prompts = [policy.encode_prompt(row.prompt) for row in rollouts]
        writers = [row.written_by or [POLICY] * len(row.token_ids) for row in rollouts]
        batch = pack(prompts, [row.token_ids for row in rollouts], policy.pad_id, device, writers)
        temperature = config.sampling.temperature
        n_tokens = n_learned(rollouts)
        frames = [_rollout_tokens(row, config, n_tokens) for row in rollouts]
    else:
        temperature = 1.0
        frames, batch = _demonstration_tokens(engine, record)
    shift = token_shift(
        engine.policy, before, batch, temperature, config.training.micro_batch_tokens
    )
    for i, frame in enumerate(frames):
        n = len(frame)
        for name in ("logprob", "logprob_after", "kl_update", "kl_reference", "kl_reference_after"):
            frame[name] = vars(shift)[name][i, :n].cpu().numpy()
        frame["logprob_change"] = frame["logprob_after"] - frame["logprob"]
    return pd.concat(frames, ignore_index=True)


def _rollout_tokens(row: RolloutRow, config: RunConfig, n_tokens: int) -> pd.DataFrame:
    positions = range(len(row.token_ids) if terms_known(config) else 0)
    terms = [token_terms(row, position, config.training, n_tokens) for position in positions]
    frame = token_frame(row, config.training.clip_range, terms)
    frame.insert(0, "sequence", row.sequence)
    frame.insert(1, "prompt_id", row.prompt_id)
    for at, loss in enumerate([term.loss for term in terms[0]] if terms else []):
        frame[f"{loss}_value"] = [each[at].value for each in terms]
        frame[f"{loss}_push"] = [each[at].push for each in terms]
    return frame


def _demonstration_tokens(
    engine: Engine, record: StepRecord
) -> tuple[list[pd.DataFrame], TokenBatch]:
    """The demonstrations' tokens, and the batch that they make."""
    known = {d.id: d for d in engine.task.demonstrations()}
    shown = [known[row.demonstration_id] for row in record.demonstrations]
    batch = pack_demonstrations(engine.policy, shown).tokens
    frames = []
    for i, demonstration in enumerate(shown):
        n = batch.lengths_N[i]
        ids = batch.completion_ids[i, :n].tolist()
        frames.append(
            pd.DataFrame(
                {
                    "sequence": i,
                    "prompt_id": demonstration.id,
                    "position": np.arange(n),
                    "token_id": ids,
                    "token": engine.policy.pieces(ids),
                }
            )
        )
    return frames, batch
