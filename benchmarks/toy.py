"""Policies small enough to enumerate all that they can write, for coverage.py and intervals.py.

Over three tokens and an end, at most four tokens long; the next-token distribution depends on the
token before and the position. Rollouts are drawn as the workbench draws them, by argmax of
log π + its own Gumbel noise.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from workbench.sampling import Noise, gumbel

V, LENGTH = 4, 4  # token 0 ends a text
PROMPTS = 12
SHIFTS = {"little": 0.25, "some": 0.8, "much": 2.0}
"""How far the two policies are apart: standard deviation of their logits' difference."""


def texts() -> list[tuple[int, ...]]:
    """All texts: each token in 1…V−1, then the end, or cut off at LENGTH."""
    found = []
    for n in range(LENGTH + 1):
        ends = [()] if n == LENGTH else [(0,)]
        found += [(*t, *e) for t in itertools.product(range(1, V), repeat=n) for e in ends]
    return found


class Toy:
    """PROMPTS pairs of policies, with the exact probability of every text under both."""

    def __init__(self, shift: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        shape = (PROMPTS, LENGTH, V, V)  # position, token before, token
        joint = 1.2 * torch.randn(shape, generator=g, dtype=torch.float64)
        moved = shift * torch.randn(shape, generator=g, dtype=torch.float64)
        self.joint = joint.log_softmax(-1)
        self.baseline = (joint + moved).log_softmax(-1)
        self.texts = texts()
        self.place = {text: i for i, text in enumerate(self.texts)}
        self.reward_PY = (torch.rand(PROMPTS, len(self.texts), generator=g) < 0.5).double()
        self.joint_PY, self.baseline_PY = self._exact(self.joint), self._exact(self.baseline)
        self.gain_P = ((self.joint_PY.exp() - self.baseline_PY.exp()) * self.reward_PY).sum(1)

    def _exact(self, logprobs: Tensor) -> Tensor:
        columns = []
        for text in self.texts:
            steps = zip(range(LENGTH), (0, *text), text, strict=False)
            columns.append(sum(logprobs[:, t, before, token] for t, before, token in steps))
        return torch.stack(columns, 1)

    def draw(self, logprobs: Tensor, noise: Noise, rollouts: int) -> Tensor:
        """Indices into `texts` of K texts a prompt, on the noise streams of the paired probe."""
        n = PROMPTS * rollouts
        prompts = torch.arange(PROMPTS).repeat_interleave(rollouts)
        before, open_ = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)
        written = torch.full((n, LENGTH), -1)
        for t in range(LENGTH):
            noisy = logprobs[prompts, t, before] + gumbel(noise, torch.arange(n), t, V)
            chosen = noisy.argmax(1)
            written[open_, t] = chosen[open_]
            open_ &= chosen != 0
            before = chosen
        rows = [tuple(token for token in row if token >= 0) for row in written.tolist()]
        return torch.tensor([self.place[row] for row in rows]).view(PROMPTS, rollouts)

    def reward(self, texts_PK: Tensor) -> Tensor:
        """Rewards of texts given by their index."""
        return self.reward_PY.gather(1, texts_PK)
