"""Tasks of lm-evaluation-harness (extra `eval`) on a model in memory: GPQA, or any other.

LiveCodeBench is no task of the harness's releases up to 0.4.13; with a folder of task files
(`--tasks DIR`) it, or any task of your own, can be named too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.config import ConfigError


def harness_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    chat_template: bool = False,
    batch: int = 8,
) -> dict[str, dict[str, Any]]:
    """{task: {metric: value, 'metric_stderr': …}} by `lm_eval.simple_evaluate`.

    folder: where task files of your own lie. Raises ConfigError where the harness is not installed
    or a task cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(
            "--sets lm-eval:…: needs lm-eval; pip install 'bridge-workbench[eval]'"
        ) from None
    manager = TaskManager(include_path=str(folder) if folder else None)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise ConfigError(
                f"--sets lm-eval:{task}: this lm-eval has no such task; give the folder of its "
                "files with --tasks"
            )
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat_template,
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--sets lm-eval:{','.join(tasks)}: the task's data cannot be had: {reason}"
        ) from None
    return {
        task: {
            key.removesuffix(",none").replace(",", "/"): value
            for key, value in numbers.items()
            if isinstance(value, (int, float))
        }
        for task, numbers in found["results"].items()
    }
