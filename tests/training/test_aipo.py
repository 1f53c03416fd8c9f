"""Rollouts that helpers take part in: who wrote what, how it counts, and a failing endpoint."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean, stdev
from threading import Thread

import pytest
import torch

from tests.training.tiny import (
    ChanceTask,
    disturb,
    float64_everywhere,
    make_policy,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.config import ConfigError, RunConfig
from workbench.sampling import Completions, pack
from workbench.session import Session
from workbench.tasks.problem import Demonstration, Problem
from workbench.training.asking import ChatHelper, NoAnswer, Query, make_helper, solution_helper
from workbench.training.batches import RolloutBatch, Rollouts
from workbench.training.gradients import rl_pass
from workbench.training.methods import make_method
from workbench.training.methods.aipo import _Helped
from workbench.training.objectives import group_advantages
from workbench.training.trainer import Trainer

SOLUTION = "1+2=3\n3+4=7\n#7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


def query(kind: str, written: str) -> Query:
    return Query(kind, "1+2+4=?", SOLUTION, written)  # type: ignore[arg-type]


def test_the_built_in_helpers_look_into_the_solution() -> None:
    assert solution_helper(query("verify", "1+2=3\n")) == "right"
    assert solution_helper(query("verify", "1+2=3\n3+4=8\n")) == "wrong: 3+4=8"
    assert solution_helper(query("knowledge", "")) == "3 lines"
    assert solution_helper(query("reasoning", "")) == "1+2=3"
    assert solution_helper(query("reasoning", "1+2=3\n")) == "3+4=7"
    assert solution_helper(query("reasoning", "1+2=4\n")) == "1+2=3"
    assert solution_helper(query("reasoning", SOLUTION)) == "#7"


def config(folder: Path, **changes: object) -> RunConfig:
    """Marker: a character that the tiny model writes often."""
    base = {"method": "aipo", "max_new_tokens": 24, "aipo_reasoning": "e", "aipo_verify": "E"}
    return small_config(folder, **{**base, **changes})


def test_each_span_is_recorded_with_its_writer(folder: Path) -> None:
    c = config(folder)
    policy = make_policy(c, baseline=False)
    task = ChanceTask(["ab\nc", "c\nd", "xyz"])
    found = Trainer(c, policy, task).step(1)
    helped = [row for row in found.rollouts if row.written_by]
    assert helped and found.metrics["aipo/queries"] > 0
    for row in helped:
        spans: list[tuple[str, str]] = []
        for who, token in zip(row.written_by, row.tokens, strict=True):
            if spans and spans[-1][0] == who:
                spans[-1] = (who, spans[-1][1] + token)
            else:
                spans.append((who, token))
        asked = 0
        for (who, text), (after, answer) in zip(spans, spans[1:], strict=False):
            if who == "policy":
                asked += 1
                assert text[-1] == {"reasoning": "e", "verify": "E"}[after]
                assert answer.startswith("\n")
        assert asked <= 2
        theirs = [
            logp
            for who, logp in zip(row.written_by, row.sampling_logprob, strict=True)
            if who != "policy"
        ]
        assert set(theirs) == {0.0}
        assert len(row.token_ids) <= 24
        solutions = {d.id: d.solution.splitlines() for d in task.shown}
        if spans[0][1] == "e":  # asked at once: the next step is the first line
            assert spans[1][1].strip() == solutions[row.prompt_id][0]


def test_a_helper_sees_the_work_and_the_steps_it_gave_but_neither_queries_nor_verdicts() -> None:
    seen: list[Query] = []

    def helper(query: Query) -> str:
        seen.append(query)
        return solution_helper(query)

    c = RunConfig().with_changes(aipo_queries=3).training
    shown = Demonstration("d", "1+2+4=?", SOLUTION, "7")
    helped = _Helped(c, helper, Problem("d", "1+2+4=?", "7"), shown)
    turns = ["?r", "?v", "?r", "#7"]
    replies = [helped.reply(turns[: i + 1]) for i in range(4)]
    assert [reply and reply.text for reply in replies] == [
        "\n1+2=3\n",
        "\nright\n",
        "\n3+4=7\n",
        None,
    ]
    assert [query.written for query in seen] == ["", "\n1+2=3\n", "\n1+2=3\n"]


def test_a_helper_of_ones_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper_of_a_test.py").write_text(
        "def shout(query):\n    return f'{query.kind.upper()} {len(query.solution)}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    c = config(folder, aipo_helper="helper_of_a_test:shout")
    task = ChanceTask(["ab\nc", "c\nd", "xyz"])
    found = Trainer(c, make_policy(c, baseline=False), task).step(1)
    helped = [row for row in found.rollouts if row.written_by]
    assert helped
    for row in helped:
        (solution,) = [d.solution for d in task.shown if d.id == row.prompt_id]
        said = "".join(
            token
            for who, token in zip(row.written_by, row.tokens, strict=True)
            if who == "reasoning"
        )
        assert said.startswith(f"\nREASONING {len(solution)}\n"[: len(said)])
    for name in ("helper_of_a_test:missing", "no_such_module_of_helpers:x"):
        with pytest.raises(ConfigError, match=f"aipo_helper: cannot import {name!r}"):
            make_helper(config(folder, aipo_helper=name).training)


def test_without_a_query_it_is_grpo(folder: Path) -> None:
    task = ChanceTask()
    task.train = [Problem(d.id, d.prompt, d.answer) for d in task.shown]
    never = {"aipo_reasoning": "§§§", "aipo_verify": "§§§", "aipo_knowledge": "§§§"}
    weights = []
    for c in (config(folder, **never), config(folder, method="grpo")):
        policy = make_policy(c, baseline=False)
        trainer = Trainer(c, policy, task)
        trainer.step(1)
        trainer.step(2)
        weights.append(policy.base_arrays("base"))
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_objective_in_a_plain_loop(folder: Path) -> None:
    with float64_everywhere():
        c = config(folder, kl_coef=0.0, temperature=1.0)
        policy = make_policy(c, baseline=False)
        to_float64(policy)
        disturb(policy.base, 0.05, seed=2)
        prompts, tokens = [[1, 40]] * 3, [[5, 6, 7, 2], [8, 9], [10, 11, 12]]
        writers = [
            ["policy", "verify", "verify", "policy"],
            ["policy"] * 2,
            ["policy", "reasoning", "policy"],
        ]
        rewards = torch.tensor([[1.0, 0.0, 0.0]])
        method = make_method(c)
        batch = RolloutBatch(
            [Problem("p", "x", "")], Completions(prompts, tokens, [], [], []), rewards, rewards,
            group_advantages(rewards), pack(prompts, tokens, 0), None, Rollouts(writers=writers),
        )  # fmt: skip
        found = rl_pass(
            "rl", policy.model, policy.base, {}, batch, c.training, 1.0, None,
            objective_of=partial(method.rl_terms, c=c),
        )  # fmt: skip
        objective = torch.zeros(())
        for i, (ids, who) in enumerate(zip(tokens, writers, strict=True)):
            group = rewards[0].tolist()
            a = (group[i] - fmean(group)) / (stdev(group) + 1e-4)
            rows = policy.model(torch.tensor([prompts[i] + ids])).logits[0, 1:-1].log_softmax(-1)
            for t, token in enumerate(ids):
                p = math.exp(float(rows[t, token].detach()))
                if who[t] == "policy":
                    objective = objective + a * (rows[t, token] - rows[t, token].detach()).exp()
                else:
                    objective = objective + min(max(p, 0.1), 1.0) * a * rows[t, token]
        objective = objective / 9
        assert found.objective == pytest.approx(float(objective.detach()), rel=1e-9)
        expected = torch.autograd.grad(objective, list(policy.base.values()))
        for value, (name, gradient) in zip(expected, found.gradient.base.items(), strict=True):
            assert torch.allclose(gradient, value, rtol=1e-8, atol=1e-12), name


# --- an endpoint --------------------------------------------------------------------------------


@contextmanager
def endpoint(answers: list[object]) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A chat server: each answer is a text, an HTTP status, or seconds to stay silent."""
    seen: list[dict[str, object]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            key = self.headers.get("Authorization")
            seen.append({"path": self.path, "key": key, **json.loads(body)})
            answer = answers[min(len(seen), len(answers)) - 1]
            if isinstance(answer, float):
                time.sleep(answer)
                answer = 500
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if isinstance(answer, str):
                reply = {"choices": [{"message": {"content": answer}}]}
                self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def chat(url: str, **changes: object) -> ChatHelper:
    settings = {"aipo_url": url, "aipo_model": "m", "aipo_timeout": 0.3, "aipo_retries": 2}
    return ChatHelper(RunConfig().with_changes(**{**settings, **changes}).training, pause=0.0)


def test_the_endpoint_is_asked_and_not_shown_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint(["  right so far  "]) as (url, seen):
        assert chat(url)(query("verify", "1+2=3")) == "right so far"
        monkeypatch.setenv("OPENAI_API_KEY", "secret of a test")
        chat(url)(query("verify", ""))
    request, with_key = seen
    assert (request["key"], with_key["key"]) == (None, "Bearer secret of a test")
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "m")
    text = json.dumps(request["messages"])
    assert "1+2+4=?" in text and "1+2=3" in text and "3+4=7" not in text


def test_it_tries_again_after_errors_and_silence() -> None:
    with endpoint([500, 1.0, "yes"]) as (url, seen):
        helper = chat(url)
        assert helper(query("verify", "")) == "yes"
        assert len(seen) == helper.calls == 3


def test_it_gives_up_after_its_retries_and_at_its_budget() -> None:
    with endpoint([503]) as (url, seen):
        with pytest.raises(NoAnswer, match="503"):
            chat(url, aipo_retries=1)(query("verify", ""))
        assert len(seen) == 2
        helper = chat(url, aipo_calls=1)
        with pytest.raises(NoAnswer, match="1 calls are used up"):
            helper(query("verify", ""))
        assert len(seen) == 3
    with pytest.raises(NoAnswer, match="http://127.0.0.1:9/v1"):
        chat("http://127.0.0.1:9/v1")(query("verify", ""))


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>busy</html>",
        b'HTTP/1.1 200 OK\r\n\r\n{"error": "busy"}',
        b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"message": {"content": null}}]}',
        b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"message": {"content": " "}}]}',
    ],
    ids=["cut off", "no HTTP", "no JSON", "no choices", "no content", "nothing said"],
)
def test_whatever_an_endpoint_sends_is_an_answer_or_none(odd: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = 0

        def serve() -> None:
            nonlocal asked
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    while b"Work so far" not in connection.recv(65536):
                        pass
                    asked += 1
                    connection.sendall(odd)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        helper = chat(f"http://127.0.0.1:{server.getsockname()[1]}/v1", aipo_retries=1)
        with pytest.raises(NoAnswer, match=r"http://127\.0\.0\.1"):
            helper(query("verify", ""))
        thread.join(5)
    assert asked == helper.calls == 2


def test_an_evaluation_has_no_helpers(folder: Path, tmp_path: Path) -> None:
    with endpoint(["ab"]) as (url, seen):
        c = config(folder, aipo_url=url, aipo_prompt=" ask!", n_validation=4, n_hard=2, n_prompts=6)
        with Session(c, tmp_path / "run") as session:
            session.evaluate("validation")
            session.evaluate("hard")
            looked = session.sample([session.problems("train")[0].prompt], rollouts=4)
            assert not seen
            record = session.step()
    assert len(seen) > 0 and any(row.written_by for row in record.rollouts)
    assert all(not row.written_by and "ask!" not in row.prompt for row in looked)


def test_a_rollout_goes_on_without_an_answer(folder: Path) -> None:
    with endpoint([500]) as (url, _):
        c = config(folder, aipo_url=url, aipo_retries=0)
        task = ChanceTask(["ab\nc", "c\nd", "xyz"])
        found = Trainer(c, make_policy(c, baseline=False), task).step(1)
    assert found.metrics["aipo/failed"] > 0
    assert all(not row.written_by for row in found.rollouts)
