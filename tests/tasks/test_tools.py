"""The task with tools: its data against a checker of each line, and its tools against abuse."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from workbench.config import ConfigError, RunConfig, ToolsTaskConfig
from workbench.tasks import environments, make_task
from workbench.tasks.environment import ENVIRONMENT, POLICY, continued, spans
from workbench.tasks.tools import ToolError, ToolsTask, calculate

PROMPT = "?3+?7-?4=?"


def task(**settings: object) -> ToolsTask:
    return ToolsTask(ToolsTaskConfig(**settings))


def said(*turns: str, **settings: object) -> str | None:
    """What the tools of PROMPT answer to the last of some turns."""
    reply = task(**settings).environment(PROMPT).reply(turns)
    return None if reply is None else reply.text


# --- data ---------------------------------------------------------------------------------------


def test_each_demonstration_looks_up_what_is_asked_and_works_it_out() -> None:
    made = task(tools_seed=3)
    for demo in made.demonstrations():
        terms = re.findall(r"([+-]?)\?(\d)", demo.prompt)
        *lines, answer = demo.solution.split("\n")
        looked = {line[1]: int(line[3:]) for line in lines if line.startswith("?")}
        assert list(looked) == [entry for _, entry in terms] and len(looked) == len(terms)
        total = sum((-1 if sign == "-" else 1) * looked[entry] for sign, entry in terms)
        assert answer == f"#{total}" and demo.answer == str(total)
        for line in lines:
            if not line.startswith("?"):
                first, sign, second, result = re.fullmatch(
                    r"(-?\d+)([+-])(\d+)=(-?\d+)", line
                ).groups()  # type: ignore[union-attr]
                assert int(result) == int(first) + int(sign + second)
        assert all(1 <= value <= 49 for value in looked.values())


def test_the_environments_part_of_a_demonstration_is_told_apart() -> None:
    made = task()
    for demo in made.demonstrations()[:20]:
        assert "".join(span.text for span in demo.spans) == demo.solution
        theirs = [span.text for span in demo.spans if span.writer == ENVIRONMENT]
        assert theirs == [f"{line.split('=')[1]}\n" for line in demo.solution.split("\n")[:-1]]
        assert tuple(spans(made.environment(demo.prompt), demo.solution)) == demo.spans


def test_no_prompt_is_in_two_splits_and_tables_are_the_prompts_own() -> None:
    made = task()
    splits = {s: {p.prompt for p in made.problems(s)} for s in ("train", "validation", "hard")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 512 + 128 + 128
    assert not {d.prompt for d in made.demonstrations()} & (splits["validation"] | splits["hard"])
    tables = {str(made.environment(prompt)) for prompt in ("?1+?2=?", "?2+?1=?", "anything")}
    assert len(tables) == 3
    assert str(task().environment(PROMPT)) == str(task().environment(PROMPT))
    assert str(task(tools_seed=1).environment(PROMPT)) != str(task().environment(PROMPT))


def test_the_answer_is_checked_exactly() -> None:
    made = task()
    problem = made.problems("train")[0]
    assert made.reward(f"?1=3\n#{problem.answer}", problem) == 1.0
    for text in ("", problem.answer, f"#{problem.answer}.", f"#{problem.answer}\n=1", "#1e1"):
        assert made.reward(text, problem) == 0.0


def test_more_prompts_than_there_are_is_one_line() -> None:
    changes = {"kind": "tools", "tools_terms": [2], "tools_prompts": 512}
    with pytest.raises(ConfigError, match="tools_terms: 640 prompts are too many, of 180") as told:
        RunConfig().with_changes(task=changes)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="tools_hard_terms: needs at least one number"):
        RunConfig().with_changes(task={"kind": "tools", "tools_hard_terms": [11]})


# --- tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    ["3", "12+17", "2*3+4*5", "2+3*4-6/2", "-5+3", "7*-2", "8/2/2", " 1 + 2 ", "0/5", "1-2-3"],
)
def test_calculate_agrees_with_exact_fractions(expression: str) -> None:
    exact = eval(re.sub(r"(\d+)", r"Fraction(\1)", expression), {"Fraction": Fraction})
    assert calculate(expression) == exact


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("1/0", "division by 0"),
        ("0/0", "division by 0"),
        ("7/2", "not whole"),
        ("999999999*999999999", "too large"),
        ("9999999999", "no sum"),
        ("2**9", "no sum"),
        ("9" * 65, "too long"),
        ("1+", "no sum"),
        ("", "no sum"),
        ("--1", "no sum"),
        ("1 2", "no sum"),
        ("(1+2)", "no sum"),
        ("٣+١", "no sum"),
        ("1e9", "no sum"),
        ("0x10", "no sum"),
        ("__import__('os')", "no sum"),
    ],
)
def test_what_cannot_be_worked_out(expression: str, told: str) -> None:
    with pytest.raises(ToolError, match=told):
        calculate(expression)


def test_calls_are_read_from_lines() -> None:
    table = task()._tools(PROMPT).table
    assert said("?3=") == f"{table['3']}\n"
    assert said("12+17=") == "29\n"
    assert said("\n \t12 + 17 =") == "29\n"
    assert said("so x is 4\n?3=") == f"{table['3']}\n"
    for malformed in ("?=", "?33=", "?x=", "??3=", "? 3=", "?3+?7="):
        assert said(malformed) == "error: no such entry\n"
    assert said("1/0=") == "error: division by 0\n"
    assert said("-=") == said("3+x=") == "error: no sum\n"
    for no_call in ("", "?3", "12+17", "x = 3", "#12=", "=", "?3\n=", "?3;import os"):
        assert said(no_call) is None
    assert said("?3=\n1+1=") == f"{table['3']}\n"  # the first of a turn; the rest is ignored
    assert said("9" * 100_000 + "=") == "error: too long\n"


def test_only_so_many_calls_are_answered() -> None:
    assert said("?3=", "?3=", tools_calls=2) is not None
    assert said("?3=", "?3=", "1+1=", tools_calls=2) is None
    assert said("?3=", tools_calls=0) is None
    assert said("\n", "?3=", tools_calls=1) is not None  # a turn without a call is none


def test_spans_of_a_text_that_the_environment_did_not_help_with() -> None:
    tools = task().environment(PROMPT)
    right = tools.reply(["?3="]).text  # type: ignore[union-attr]
    assert spans(tools, "?3=") == [(POLICY, "?3=")]
    assert spans(tools, f"?3={right}#1") == [
        (POLICY, "?3="), (ENVIRONMENT, right), (POLICY, "#1"),
    ]  # fmt: skip
    made_up = "?3=999\n#1"
    assert spans(tools, made_up) == [(POLICY, made_up)]
    cut = spans(tools, "1+1=2")  # by the length limit
    assert cut == [(POLICY, "1+1="), (ENVIRONMENT, "2")]


def test_an_environment_goes_on_where_a_text_stopped() -> None:
    tools = task(tools_calls=2).environment(PROMPT)
    right = tools.reply(["?3="]).text  # type: ignore[union-attr]
    later = continued(tools, f"?3={right}12+")
    assert later.reply(["17"]) is None
    assert later.reply(["17="]).text == "29\n"  # type: ignore[union-attr]
    assert later.reply(["17=", "?3="]) is None  # both calls are used up


def test_other_demonstrations_and_rewards_keep_the_environment() -> None:
    plain = task()
    rows = [
        {"prompt": d.prompt, "solution": d.solution, "answer": d.answer}
        for d in plain.demonstrations()[:4]
    ]
    config = ToolsTaskConfig(
        demonstrations_from={"kind": "dataset", "data": rows, "validation_share": 0.0},
        rewards=[{"kind": "task"}],
    )
    made = make_task(config)
    found = environments(made, [PROMPT])
    assert found is not None and found[0].reply(["1+1="]).text == "2\n"  # type: ignore[union-attr]
    known = {d.prompt: d.spans for d in plain.demonstrations()}
    assert all(d.spans == known[d.prompt] for d in made.demonstrations())
    assert environments(None, [PROMPT]) is None
    assert environments(make_task(RunConfig().task), [PROMPT]) is None
