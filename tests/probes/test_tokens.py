"""Token arithmetic against enumerated distributions, and pieces of multibyte text."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from workbench.models import token_pieces
from workbench.pocket.make import make_tokenizer
from workbench.probes.tokens import clipped, k3, log_ratio_of_text, ratio, token_frame
from workbench.records import RolloutRow


def rollout(**arrays: object) -> RolloutRow:
    settings = dict(
        step=1,
        purpose="train",
        policy="joint",
        sequence=0,
        prompt_id="p",
        prompt="1+1=?",
        completion="#2",
        answer="2",
        extracted="2",
        reward=1.0,
        correct=1.0,
        advantage=0.5,
        finished=True,
        token_ids=[5, 6, 2],
        tokens=["#", "2", "<eos>"],
        sampling_logprob=[log(0.5), log(0.25), log(0.8)],
    )
    return RolloutRow(**{**settings, **arrays})


def test_k3_averages_to_the_exact_kl() -> None:
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(50), 2)
    exact = float((p * np.log(p / q)).sum())
    each = k3(np.log(p).tolist(), np.log(q).tolist())
    assert (each >= 0).all()
    assert float((p * each).sum()) == pytest.approx(exact, rel=1e-12)


def test_ratio_of_tokens_multiplies_to_the_ratio_of_the_text() -> None:
    now, then = [log(0.5), log(0.1)], [log(0.25), log(0.2)]
    assert ratio(now, then) == pytest.approx([2.0, 0.5])
    assert exp(log_ratio_of_text(now, then)) == pytest.approx(1.0)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(AssertionError, match="one length"):
        ratio([0.0, 0.0], [0.0])


def test_only_the_far_side_is_clipped() -> None:
    ratios = np.array([0.5, 0.9, 1.1, 1.5])
    assert clipped(ratios, 1.0, 0.2).tolist() == [False, False, False, True]
    assert clipped(ratios, -1.0, 0.2).tolist() == [True, False, False, False]
    assert clipped(ratios, 0.0, 0.2).tolist() == [False] * 4


def test_token_frame_of_a_fully_measured_rollout() -> None:
    frame = token_frame(
        rollout(
            logprob=[log(0.5), log(0.5), log(0.8)],
            baseline_logprob=[log(0.75), log(0.25), log(0.8)],
            coordinator_off_logprob=[log(0.25), log(0.5), log(0.4)],
            reference_logprob=[log(0.5), log(0.25), log(0.8)],
            entropy=[0.7, 0.6, 0.5],
        )
    )
    assert frame["token"].tolist() == ["#", "2", "<eos>"]
    assert frame["probability"].tolist() == pytest.approx([0.5, 0.5, 0.8])
    assert frame["ratio"].tolist() == pytest.approx([1, 2, 1])
    assert frame["baseline_ratio"].tolist() == pytest.approx([1.5, 0.5, 1])
    assert frame["baseline_clipped"].tolist() == [1, 0, 0]
    assert frame["kl"].tolist() == pytest.approx([0, 0.5 - 1 - log(0.5), 0])
    assert frame["coordinator_difference"].tolist() == pytest.approx([log(2), 0, log(2)])
    assert frame["entropy"].tolist() == [0.7, 0.6, 0.5]


def test_what_was_not_measured_is_nan() -> None:
    frame = token_frame(rollout())
    assert frame["probability"].tolist() == pytest.approx([0.5, 0.25, 0.8])
    missing = ["ratio", "baseline_ratio", "baseline_clipped", "kl", "coordinator_difference"]
    assert frame[[*missing, "entropy"]].isna().all(axis=None)


TEXTS = ["plain", "é😀 ok\n", "🧑‍🚀", "日本語 12", "", "\ufffd#"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_bytes_put_a_character_at_its_last_token(text: str) -> None:
    tokenizer = make_tokenizer()
    pieces = token_pieces(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert len(pieces) == len(text.encode())
    assert "".join(pieces) == text


def test_pieces_of_an_emoji() -> None:
    tokenizer = make_tokenizer()
    ids = [*tokenizer.encode("a😀b", add_special_tokens=False), 2]
    assert token_pieces(tokenizer, ids) == ["a", "", "", "", "😀", "b", "<eos>"]


def test_a_broken_character_is_shown_as_such_and_spoils_no_other() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("😀7😀", add_special_tokens=False)
    assert token_pieces(tokenizer, ids[1:-1]) == [
        "",
        "",
        "",
        "\ufffd\ufffd\ufffd7",
        "",
        "",
        "\ufffd",
    ]


def test_pieces_keep_spaces_that_a_tokenizer_drops_at_the_start() -> None:
    """A SentencePiece-style tokenizer decodes '▁world' alone as 'world'."""
    vocab = {"▁Hello": 0, "▁world": 1, "!": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = [0, 1, 2, *(3 + byte for byte in "😀".encode()), 1]
    assert token_pieces(tokenizer, ids) == ["Hello", " world", "!", "", "", "", "😀", " world"]
