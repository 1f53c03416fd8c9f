import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workbench.config import ConfigError, DatasetTaskConfig, RunConfig
from workbench.tasks import Problem, Task, make_task
from workbench.tasks.messages import read_messages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROWS = [
    {"question": f"{n} + {n} =", "working": f"{n} and {n} make {2 * n:,}.", "result": 2 * n}
    for n in range(480, 520)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps converted files; let each test keep its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def task(path: Path, **changes: Any) -> Task:
    columns = {
        "prompt_column": "question",
        "solution_column": "working",
        "answer_column": "result",
    }
    return make_task(DatasetTaskConfig(data=str(path), **{**columns, **changes}))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_columns_become_prompt_solution_and_answer(tmp_path: Path, name: str) -> None:
    read = task(write(tmp_path / name, ROWS))
    train, validation = read.problems("train"), read.problems("validation")
    assert (len(train), len(validation), len(read.problems("hard"))) == (36, 4, 0)
    by_prompt = {row["question"]: row for row in ROWS}
    for problem in [*train, *validation]:
        row = by_prompt.pop(problem.prompt)
        assert problem.answer == str(row["result"])
        assert ROWS[int(problem.id.removeprefix("row-")) - 1] is row
    assert not by_prompt
    held_out = {problem.prompt for problem in validation}
    for demonstration in read.demonstrations():
        row = next(r for r in ROWS if r["question"] == demonstration.prompt)
        assert demonstration.solution == row["working"]
        assert demonstration.quality == "unknown"
        assert demonstration.prompt not in held_out
    assert len(read.demonstrations()) == 36


def test_the_split_follows_the_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    before = random.getstate()
    first, again, other = task(path), task(path), task(path, data_seed=1)
    assert random.getstate() == before
    assert first.problems("train") == again.problems("train")
    assert first.problems("validation") != other.problems("validation")


def test_a_prompt_that_comes_twice_stays_in_one_split(tmp_path: Path) -> None:
    read = task(write(tmp_path / "rows.jsonl", ROWS[:6] * 4), validation_share=0.5)
    train = {p.prompt for p in read.problems("train")}
    validation = {p.prompt for p in read.problems("validation")}
    assert (len(train), len(validation)) == (3, 3)
    assert not train & validation


def test_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    read = task(write(tmp_path / "rows.jsonl", ROWS))
    problem = Problem("row-1", "?", "1000")
    assert read.reward("500 and 500 make 1,000.", problem) == 1.0
    assert read.reward("first 1000\nthen 999", problem) == 0.0
    assert read.reward("no idea", problem) == 0.0
    assert read.extract("12+7=19\n19-30=-11\n") == "-11"


def test_answer_pattern_finds_texts_too(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "working": f"so it is [{c}]", "result": c}
        for i, c in enumerate("abc")
    ]
    read = task(write(tmp_path / "rows.jsonl", rows), answer_pattern=r"\[(\w+)\]")
    assert read.reward("not [b] but [a]", Problem("row-1", "q0", "a")) == 1.0
    assert read.reward("a", Problem("row-1", "q0", "a")) == 0.0


def test_solution_and_answer_in_one_column(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{n}", "both": f"{n} twice is\n#### {2 * n:,}"} for n in range(990, 1010)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    read = task(
        path, solution_column="both", answer_column="both", answer_pattern=r"#### (-?[\d,]+)"
    )
    problem = next(p for p in read.problems("train") if p.prompt == "q1000")
    assert problem.answer == "2,000"
    assert read.reward("#### 2000", problem) == 1.0


def test_rows_without_a_solution_are_prompts_only(tmp_path: Path) -> None:
    rows = [{**row, "working": row["working"] if i % 2 else None} for i, row in enumerate(ROWS)]
    read = task(write(tmp_path / "rows.jsonl", rows), validation_share=0.0)
    assert len(read.problems("train")) == 40
    assert read.problems("validation") == []
    assert len(read.demonstrations()) == 20


def test_data_without_solutions_is_fine_until_they_are_asked_for(tmp_path: Path) -> None:
    read = task(write(tmp_path / "rows.jsonl", ROWS), solution_column="")
    assert len(read.problems("train")) == 36
    with pytest.raises(ConfigError, match="no row .* has a solution"):
        read.demonstrations()


def test_rows_in_the_config_are_kept_with_it() -> None:
    config = RunConfig().with_changes(
        task={
            "kind": "dataset",
            "data": [{**row, "note": None} for row in ROWS],
            "prompt_column": "question",
            "solution_column": "working",
            "answer_column": "result",
        }
    )
    again = RunConfig.parse(tomllib.loads(config.to_toml()))
    assert again == config
    first, second = make_task(config.task), make_task(again.task)
    assert first.problems("train") == second.problems("train")
    assert {p.prompt for p in first.problems("train")} < {row["question"] for row in ROWS}
    with pytest.raises(ConfigError, match="2001 rows are too many"):
        config.with_changes(data=[ROWS[0]] * 2001)


def test_order_and_number_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    ordered = task(path, data_shuffle=False, validation_share=0.0, data_limit=5)
    assert [p.prompt for p in ordered.problems("train")] == [r["question"] for r in ROWS[:5]]
    shuffled = task(path, validation_share=0.0)
    limited = task(path, validation_share=0.0, data_limit=5)
    assert limited.problems("train") == shuffled.problems("train")[:5]


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


CHATS = [
    chat(("user", "2 + 2 ="), ("assistant", "it is 4")),
    chat(("system", "Be short."), ("user", "3 + 3 ="), ("assistant", "6")),
    chat(("user", "1 + 1 ="), ("assistant", "2"), ("user", "and twice that?"), ("assistant", "4")),
]


def test_chats_become_prompts_and_solutions(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", CHATS)
    read = make_task(
        DatasetTaskConfig(
            data=str(path),
            messages_column="messages",
            answer_column="",
            validation_share=0.0,
            data_shuffle=False,
        )
    )
    demonstrations = read.demonstrations()
    assert [d.solution for d in demonstrations] == ["it is 4", "6", "4"]
    assert [d.answer for d in demonstrations] == ["4", "6", "4"]
    assert demonstrations[0].prompt == "2 + 2 ="
    for row, shown in zip(CHATS, demonstrations, strict=True):
        assert read_messages(shown.prompt) == row["messages"][:-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "row 1 of .* holds no list of messages"),
        (chat(("assistant", "4")), "row 1 of .* has no message of the user"),
        ({"messages": [{"role": "user"}]}, "row 1 of .* has a message 1 that is no"),
    ],
)
def test_a_chat_that_is_none_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(DatasetTaskConfig(data=(row, row), messages_column="messages", answer_column=""))


def bad(row: int, **values: Any) -> list[dict[str, Any]]:
    rows = [dict(r) for r in ROWS]
    rows[row - 1].update(values)
    return rows


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            ROWS,
            {"prompt_column": "questions"},
            "task.prompt_column: .*'question'.*question, working",
        ),
        (ROWS, {"solution_column": "cot"}, "task.solution_column: .* no column 'cot'"),
        (ROWS, {"answer_column": "", "solution_column": ""}, "row 1 of .* empty answer"),
        (bad(7, question="  "), {}, "row 7 of .* empty prompt"),
        (bad(9, result=None), {}, "row 9 of .* empty answer"),
        (ROWS, {"answer_pattern": "("}, "task.answer_pattern: not a regular expression"),
        (ROWS, {"answer_pattern": r"\d+"}, "task.answer_pattern: needs a group"),
        (ROWS, {"answer_pattern": r"#(\d+)"}, "finds the answer in none of 40 solutions"),
        (ROWS[:1], {}, "has 1 rows"),
        (
            [{**row, "question": [row["question"]]} for row in ROWS],
            {},
            "task.prompt_column: row 1 of .* holds a list",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=message) as error:
        task(path, **changes)
    assert "\n" not in str(error.value)


def test_a_csvs_cells_are_texts_as_they_stand(tmp_path: Path) -> None:
    """Also behind the byte order mark that spreadsheets write."""
    rows = [
        ("NA", "so 007", "007"),
        ("None", "", "1e3"),
        ("a\nb, c", "so 3.10", "3.10"),
        ("é", "", "x"),
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("question", "working", "result"), *rows])
    found = task(path, validation_share=0.0, data_shuffle=False)
    assert [(p.prompt, p.answer) for p in found.problems("train")] == [(q, a) for q, _, a in rows]
    assert [d.solution for d in found.demonstrations()] == ["so 007", "so 3.10"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "task.data: there is no file"),
        ("rows.txt", "x", "task.data: .*rows.txt' is no file of a kind that is read"),
        ("broken.jsonl", '{"question": "a"\n{"', "task.data: cannot read .*broken.jsonl"),
        ("broken.parquet", "PAR", "task.data: cannot read .*broken.parquet"),
        ("empty.csv", "", "task.data: cannot read .*empty.csv"),
        ("empty.jsonl", "", "task.data: .*empty.jsonl' is empty"),
        ("late.jsonl", '{"question": "a"}\n\n{"question": }\n', "line 3, character 14: Expecting"),
        ("list.jsonl", '{"question": "a"}\n["b"]\n', "line 2 is no JSON object"),
        ("latin.jsonl", '{"question": "a"}\n{"question": "\udce9"}\n', "line 2 is no UTF-8 text"),
        ("wide.csv", "question,working,result\na,b,1\nc,d,2,e\n", "Expected 3 fields in line 3"),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message) as error:
        task(tmp_path / name)
    assert "\n" not in str(error.value)
