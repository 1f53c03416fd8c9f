"""Conversations as prompts: there and back, and as the model sees them."""

import json

import pytest

from tests.test_models import CHAT, byte_tokenizer
from workbench.config import ModelConfig
from workbench.models import encode_prompt
from workbench.tasks.messages import read_messages, split_messages, write_messages

USER = {"role": "user", "content": "1 + 1 ="}
SYSTEM = {"role": "system", "content": "Be short."}
ASSISTANT = {"role": "assistant", "content": "2"}
TURNS = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": 'and "twice"\nthat?'}]


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], TURNS])
def test_messages_come_back_from_the_prompt_that_stands_for_them(
    messages: list[dict[str, str]],
) -> None:
    assert read_messages(write_messages(messages)) == messages
    assert split_messages([*messages, ASSISTANT]) == (write_messages(messages), "2")
    assert split_messages(messages) == (write_messages(messages), "")


@pytest.mark.parametrize("text", ["1 + 1 =", '[{"role": broken', '[{"role": "user"}]', "[]", ""])
def test_a_plain_text_is_the_users_message(text: str) -> None:
    assert read_messages(text) == [{"role": "user", "content": text}]
    assert write_messages([{"role": "user", "content": text}]) == text


def test_a_users_text_that_looks_like_messages_stays_a_text() -> None:
    text = json.dumps([SYSTEM, USER])
    assert read_messages(write_messages([{"role": "user", "content": text}])) == [
        {"role": "user", "content": text}
    ]


def test_the_model_sees_the_messages_through_its_template() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT)
    seen = encode_prompt(tokenizer, write_messages(TURNS), ModelConfig(system_prompt="Be kind."))
    expected = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert seen == expected  # the conversation's own system message wins
    first = encode_prompt(tokenizer, write_messages([USER]), ModelConfig(system_prompt="Be kind."))
    kind = [{"role": "system", "content": "Be kind."}, USER]
    assert first == tokenizer.apply_chat_template(
        kind, add_generation_prompt=True, return_dict=False
    )


def test_without_a_template_messages_stand_in_paragraphs() -> None:
    tokenizer = byte_tokenizer()
    plain = encode_prompt(tokenizer, write_messages([SYSTEM, USER]), ModelConfig())
    assert tokenizer.decode(plain) == "Be short.\n\n1 + 1 ="
