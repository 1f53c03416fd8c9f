import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from workbench.__main__ import main
from workbench.pocket.make import make_tokenizer
from workbench.store import RunFolderError, open_run

QUICK = [
    "device=cpu",
    "prompts_per_step=2",
    "group_size=2",
    "demonstrations_per_step=2",
    "max_new_tokens=4",
    "evaluation_prompts=2",
    "evaluation_max_new_tokens=4",
    "paired_prompts=2",
    "paired_rollouts=2",
    "n_prompts=8",
    "n_demonstrations=8",
    "n_validation=4",
    "n_hard=4",
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that make steps of a tiny model last a moment."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["--set", f"path={folder}", *QUICK]


def test_train_then_resume_show_and_export(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train = ["train", "--run", str(run)]
    assert main([*train, "--steps", "1", "--method", "grpo", "--seed", "3", *quick]) == 0
    out = capsys.readouterr().out
    assert "grpo on" in out and f"step 1 to 1, in {run}" in out and "reward" in out
    config = open_run(run).config
    assert (config.method, config.seed, config.training.group_size) == ("grpo", 3, 2)

    assert main([*train, "--resume", "--steps", "3", "--set", "rl_weight=0.25"]) == 0
    assert "step 2 to 3" in capsys.readouterr().out
    assert open_run(run).frame("metrics")["step"].tolist() == [1, 2, 3]
    assert open_run(run).frame("metrics")["rl_weight"].tolist()[1:] == [0.25, 0.25]

    assert main([*train, "--resume", "--steps", "3"]) == 0
    assert "at step 3 already" in capsys.readouterr().out

    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "run: closed at step 3" in shown and "grpo on" in shown and "snapshots: 0, " in shown
    assert re.search(r"the newest has \d+\.\d MB; one takes \d+ ms beside the training", shown)

    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported(torch.tensor([[1, 2, 3]])).logits.isfinite().all()

    assert main([*train, *quick]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_config_file_is_where_settings_start(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 4\nmethod = "sft"\n[training]\nbase_lr = 0.25\n')
    run = tmp_path / "run"
    arguments = ["train", "--config", str(file), "--run", str(run), "--steps", "1", "--seed", "5"]
    assert main([*arguments, *quick]) == 0
    config = open_run(run).config
    assert (config.seed, config.method, config.training.base_lr) == (5, "sft", 0.25)


def test_set_reads_toml_values_and_bare_strings(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    values = ["system_prompt=be brief", "terms=[2, 4]", "method='sft'", "kl_coef=0"]
    values += ["flaws={detour = 0.5}", "train_coordinator=false", "gguf_file="]
    assert main(["train", "--run", str(run), "--steps", "1", *quick, *values]) == 0
    config = open_run(run).config
    assert config.model.system_prompt == "be brief"
    assert config.get("terms") == (2, 4)
    assert config.get("flaws") == {"detour": 0.5}
    assert (config.method, config.training.kl_coef) == ("sft", 0.0)
    assert config.training.train_coordinator is False
    assert config.model.gguf_file == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("train --steps 0", "argument --steps: '0' is not a number of steps"),
        ("train --seed x", "argument --seed: invalid int value: 'x'"),
        ("train --set seed", "argument --set: 'seed' is not KEY=VALUE"),
        ("train --preset pocket --config x", "not allowed with argument"),
        ("train --preset none", "preset: no preset 'none'; there are pocket, smollm2"),
        ("train --method dpo", "method: no method 'dpo'; there are bridge, "),
        ("train --set base_rl=1", "base_rl: no such setting; did you mean 'base_lr'"),
        ("train --set rl_weight=2", "training.rl_weight: .*got 2"),
        ("train --set rl_weight=high", "training.rl_weight: .*got 'high'"),
        ("train --config gone.toml", "config: cannot read gone.toml: No such file or directory"),
        ("train --set path=./gone --run {tmp}/a", "model.path: there is no './gone'"),
        ("train --resume", "--resume: say which run with --run DIR"),
        ("train --resume --run {tmp} --seed 3", "--seed: a resumed run keeps its own"),
        ("train --resume --run {tmp}/gone", "no run at .*gone"),
        ("show {tmp}/gone", "no run at .*gone"),
        ("export {tmp}/gone {tmp}/out", "no run at .*gone"),
        ("fetch gpt5", "invalid choice: 'gpt5'"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments.format(tmp=tmp_path).split())
    except SystemExit as error:  # argparse
        code = error.code
    err = capsys.readouterr().err
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_a_bad_live_setting_leaves_the_run_as_it_was(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--steps", "1", *quick]) == 0
    resume = ["train", "--resume", "--run", str(run), "--steps", "2", "--set"]
    capsys.readouterr()
    assert main([*resume, "group_size=4"]) == 2
    assert "group_size: cannot change during a run" in capsys.readouterr().err
    assert (open_run(run).state, open_run(run).last_step()) == ("closed", 1)
    assert main([*resume, "rl_weight=1"]) == 0


def wait_for_a_step(run: Path) -> None:
    while True:
        time.sleep(0.05)
        try:
            if open_run(run).last_step() >= 1:
                return
        except RunFolderError:  # not there yet
            continue


def test_ctrl_c_saves_and_says_how_to_go_on(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"

    def interrupt_after_the_first_step() -> None:
        wait_for_a_step(run)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt_after_the_first_step, daemon=True)
    watcher.start()
    code = main(["train", "--run", str(run), "--steps", "100000", *quick])
    watcher.join()
    assert code == 130
    last = open_run(run).last_step()
    err = capsys.readouterr().err
    assert f"paused and saved at step {last}; go on with:" in err
    assert f"python -m workbench train --resume --run '{run}' --steps 100000" in err
    assert open_run(run).state == "closed"
    assert last in open_run(run).snapshot_steps()
    assert main(["train", "--resume", "--run", str(run), "--steps", str(last + 1)]) == 0
    assert open_run(run).frame("metrics")["step"].tolist() == list(range(1, last + 2))


@pytest.mark.slow
def test_a_polite_kill_saves_too(quick: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "workbench", "train", "--run", str(run), "--steps", "100000"]
    with subprocess.Popen([*command, *quick], stderr=subprocess.PIPE, text=True) as process:
        wait_for_a_step(run)
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 130
    assert "paused and saved at step" in err
    assert open_run(run).state == "closed"


def test_help_and_show_do_not_load_torch(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--steps", "1", *quick]) == 0
    script = (
        "import runpy, sys\n"
        "try: runpy.run_module('workbench', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "loaded = {'torch', 'transformers', 'gradio', 'datasets'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    for arguments in (["--help"], ["train", "--help"], ["show", str(run)]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "run" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "workbench", "plan", "--preset", "pocket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
