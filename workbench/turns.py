"""A completion that is written in turns, and where each turn ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from workbench.tasks.environment import Environment, Reply


@dataclass
class Row:
    """A completion under way."""

    prompt_ids: list[int]
    stream: int
    environment: Environment | None
    token_ids: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    """What the policy wrote before each reply."""
    going: bool = True
    """Whether it has more to write."""


class TurnEnds(StoppingCriteria):
    """Ends each row's turn: at an end token, at its length limit, or where it is replied to."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int],
        n_prompt: int,
        longest: int,
    ):
        self.rows, self.tokenizer, self.end_ids = rows, tokenizer, set(end_ids)
        self.n_prompt = n_prompt
        self.room = [longest - len(row.token_ids) for row in rows]
        self.lengths = [0] * len(rows)  # 0: still writing
        self.replies: list[Reply | None] = [None] * len(rows)
        self.pieces: dict[int, str] = {}

    def __call__(  # type: ignore[override]
        self, input_ids: Tensor, scores: Any, **settings: Any
    ) -> Tensor:
        """Which rows' turns have ended: bool (N,)."""
        n = input_ids.shape[1] - self.n_prompt
        for i, token in enumerate(input_ids[:, -1].tolist()):
            if self.lengths[i]:
                continue
            if token in self.end_ids or n == self.room[i]:
                self.lengths[i] = n
            elif self._may_end(token, self.rows[i].environment):
                text = self.text(input_ids[i, self.n_prompt :].tolist())
                environment = self.rows[i].environment
                assert environment is not None
                self.replies[i] = environment.reply([*self.rows[i].turns, text])
                self.lengths[i] = n if self.replies[i] is not None else 0
        return torch.tensor([length > 0 for length in self.lengths], device=input_ids.device)

    def _may_end(self, token: int, environment: Environment | None) -> bool:
        """Whether a turn may end with this token; most cannot, and need no decoding of the turn."""
        if environment is None:
            return False
        if token not in self.pieces:
            self.pieces[token] = self.text([token])
        piece = self.pieces[token]
        # some tokenizers drop spaces at the edge, and a piece of a character is no character
        return "\ufffd" in piece or any(end in piece or end.isspace() for end in environment.ends)

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
