"""Weights that the per-sample products cannot follow."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.diagnosis.detector import Detector, Symptom
from workbench.diagnosis.history import History

MUCH = 0.1
"""Share of ‖g^R‖² from which contributions may mislead. [ours]"""


def check(h: History) -> Iterator[Symptom]:
    """Some of g^R lies in weights of layers that probes/ghost.py does not know."""
    share = h.now("alignment/skipped_share")
    if not share > 0:
        return
    yield Symptom(
        "warning" if share >= MUCH else "note",
        h.since("alignment/skipped_share", lambda v: v > 0),
        f"{share:.2g} of the RL gradient's squared norm lies in weights that cannot be followed "
        "demonstration by demonstration: their contributions and the ledger leave it out, and the "
        "noise band comes from two halves of the batch, so it is wide.",
        {"metric": "alignment/skipped_share", "share": share},
        ("layers that probes/ghost.py does not cover; Session.skipped_weights() names them",),
    )


DETECTOR = Detector(
    "unfollowed_weights", (("alignment/skipped_share",),), check, "any share at all [ours]", True
)
