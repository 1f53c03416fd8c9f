"""Conversations as prompts: a text that holds one, and the messages in it.

A prompt is a text everywhere. One that is a conversation (with a system message, or several turns)
is the JSON of its messages, `[{"role": "system", "content": "…"}, …]`, so that it goes through
records, frames and typing fields unharmed; a single user message is its plain text. [ours]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]
"""role and content."""


def write_messages(messages: Sequence[Message]) -> str:
    """The prompt that stands for these messages."""
    if len(messages) == 1 and messages[0]["role"] == "user" and not is_chat(messages[0]["content"]):
        return messages[0]["content"]
    return json.dumps(
        [{"role": m["role"], "content": m["content"]} for m in messages], ensure_ascii=False
    )


def read_messages(prompt: str) -> list[Message]:
    """The messages a prompt stands for; a plain text is one of the user's."""
    if not prompt.startswith('[{"role": '):
        return [{"role": "user", "content": prompt}]
    try:
        found = json.loads(prompt)
    except json.JSONDecodeError:
        return [{"role": "user", "content": prompt}]
    if not all(_is_message(m) for m in found):
        return [{"role": "user", "content": prompt}]
    return found


def is_chat(prompt: str) -> bool:
    """Whether a prompt is the JSON of messages, not a plain text."""
    return read_messages(prompt) != [{"role": "user", "content": prompt}]


def split_messages(messages: Any) -> tuple[str, str]:
    """(prompt, solution) of a chat: its last message, where that is the assistant's, and the rest.

    The solution is '' where the last message is not the assistant's. Raises ValueError, saying
    what a message lacks.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError("holds no list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not _is_message(message):
            raise ValueError(f"has a message {number} that is no {{role, content}} of texts")
    solved = messages[-1]["role"] == "assistant"
    asked = messages[:-1] if solved else messages
    if not any(message["role"] == "user" for message in asked):
        raise ValueError("has no message of the user before the answer")
    return write_messages(asked), messages[-1]["content"] if solved else ""


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )
