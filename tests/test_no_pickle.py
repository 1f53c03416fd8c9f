"""Nothing that can carry code is ever loaded: no pickle, no code of a checkpoint."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.tiny import save_tiny_llama
from workbench.config import ConfigError, ModelConfig, RunConfig
from workbench.models import load_model
from workbench.session import Session

ROOT = Path(__file__).parents[1]
PRODUCT = [ROOT / "app.py", *sorted((ROOT / "workbench").rglob("*.py"))]
CARRIERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def nodes(file: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", PRODUCT, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_loads_what_can_carry_code(file: Path) -> None:
    for node in nodes(file):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            assert not CARRIERS & {str(name).split(".")[0] for name in named}, file
        if not isinstance(node, ast.Call):
            continue
        said = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert said not in ("eval", "exec", "torch.hub.load", "torch.jit.load"), file
        if said == "torch.load":
            assert given.get("weights_only") == "True", file
        if said in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", file
        assert given.get("trust_remote_code", "False") == "False", file
        assert given.get("allow_pickle", "False") == "False", file


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a pickle from here on fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle was loaded")

    for owner, name in ((pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)


def test_a_run_and_its_resumption_load_no_pickle(no_pickle: None, tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model")
    config = RunConfig().with_changes(
        path=str(model),
        device="cpu",
        n_prompts=4,
        n_demonstrations=4,
        prompts_per_step=2,
        group_size=2,
        demonstrations_per_step=2,
        max_new_tokens=2,
        paired_gain_every=0,
        evaluate_every=0,
    )
    with Session(config, tmp_path / "run") as s:
        s.step()
    with Session.resume(tmp_path / "run") as s:
        s.rewind(0)
        s.export(tmp_path / "out")
    kinds = {path.suffix for path in (tmp_path / "run/snapshots").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ""}  # the last: SHA256SUMS
    assert load_model(ModelConfig(path=str(tmp_path / "out"), device="cpu"))


def test_pickled_weights_are_refused_in_one_line(no_pickle: None, tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="^model.path: cannot load .*safetensors") as caught:
        load_model(ModelConfig(path=str(folder), device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_brings_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    said = '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}'
    (folder / "config.json").write_text(said)
    (folder / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(ConfigError, match="^model.path: "):
        load_model(ModelConfig(path=str(folder), device="cpu"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../secret.gguf", "/etc/secret.gguf", "a/../../secret.gguf"])
def test_a_gguf_file_outside_the_models_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.gguf").touch()
    with pytest.raises(ConfigError, match="^model.gguf_file: .* is not inside"):
        load_model(ModelConfig(path=str(tmp_path / "model"), gguf_file=name, device="cpu"))
