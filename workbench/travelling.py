"""What a Session can do about its past: execute a step again, and go on from a finding."""

from __future__ import annotations

from typing import Any

from workbench.replay import Replay
from workbench.replaying import OnTheWay, replay
from workbench.worker import Worker


class Travelling:
    """A Session's travels in time that leave the run alone."""

    _worker: Worker

    def replay(
        self,
        step: int | None = None,
        trace: bool = False,
        progress: OnTheWay | None = None,
        **changes: Any,
    ) -> Replay:
        """Execute a step again in a scratch copy, to the last bit: s.replay(137, trace=True).

        The nearest snapshot is loaded and executed again up to there. `trace` also records what
        happens inside: activations and gradients by layer, every token's terms, each sample's
        gradient products, each layer's update, KL before and after (see `Replay`). `changes` ask
        "what if": s.replay(137, rl_weight=0.9); any setting but the model's. step: default the
        last; the one after it is what the run would do next. progress: called with each step that
        is begun and the last one. Ctrl-C or a pause breaks it off.

        Changes nothing in the run. Raises RunFolderError where there is no such step, ConfigError
        where the changes cannot be made.
        """
        engine, worker = self._worker.engine, self._worker

        def look() -> Replay:
            number = engine.step_number if step is None else step
            return replay(
                engine,
                number,
                trace=trace,
                changes=dict(changes),
                again=worker.again,
                progress=progress,
            )

        return worker.post("replay", "look", look)
