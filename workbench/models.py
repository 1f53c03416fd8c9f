"""Load any transformers causal language model, and say what it sees of a prompt and a completion.

    model, tokenizer = load_model(ModelConfig(path="pocket"))

`path` is 'pocket' (shipped with this package), 'smollm2' (after `python -m workbench fetch
smollm2`), a folder, a hub id, or a GGUF file. Weights are always float32, since small updates
vanish in bf16 [ours], and no code from a checkpoint is run. The model comes in evaluation mode
(dropout off); training leaves it there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.config import ConfigError, ModelConfig
from workbench.tasks.messages import read_messages

POCKET_FOLDER = Path(__file__).parent / "pocket"

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def smollm2_folder() -> Path:
    """Where `fetch smollm2` leaves the model: under $XDG_CACHE_HOME, else ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bridge-workbench" / "smollm2"


def resolve_device(name: str) -> torch.device:
    """'auto' → the first CUDA device, or the CPU where there is none; otherwise the device named.

    Raises ConfigError for a name torch does not know or a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def load_model(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on `config.device`, and its tokenizer, with a pad token.

    A tokenizer without a pad token that the model knows gets its end-of-text token as one: mask
    padding by position, never by token. Raises ConfigError where there is no such model, it is no
    causal LM, or it would need to run code of its own.
    """
    device = resolve_device(config.device)
    source, gguf_file = _locate(config)
    try:
        if gguf_file:
            model, tokenizer = load_gguf(source, gguf_file)
        else:
            architecture = AutoConfig.from_pretrained(source, trust_remote_code=False)
            _check_causal(config.path, architecture)
            model, loading = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,  # the other format is a pickle, which can run code
                output_loading_info=True,
            )
            if loading["missing_keys"]:
                raise ConfigError(
                    f"model.path: {config.path!r} lacks weights of a causal language model: "
                    f"{', '.join(sorted(loading['missing_keys'])[:3])}"
                )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        shown = reason if len(reason) <= 200 else reason[:199] + "…"
        where = "" if Path(source).exists() else ", which is no folder here"
        raise ConfigError(f"model.path: cannot load {config.path!r}{where}: {shown}") from None
    if tokenizer.eos_token is None:
        raise ConfigError(f"model.path: the tokenizer of {config.path!r} has no end-of-text token")
    n_embeddings = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > n_embeddings:
        raise ConfigError(
            f"model.path: {config.path!r} has {tokenizer.vocab_size} tokens in its tokenizer "
            f"but {n_embeddings} in its model"
        )
    # a pad token added to a tokenizer alone has no embedding either
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= n_embeddings:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.to(device).eval(), tokenizer


def load_gguf(
    folder: str | Path, gguf_file: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF file of a folder or hub repository into a plain float32 model.

    transformers marks the model it dequantised as quantised and refuses to save it, so its tensors
    are put into a plain one.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    quantised = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32
    )
    values = quantised.config.to_dict()
    del values["quantization_config"], values["_name_or_path"]
    plain = type(quantised).from_pretrained(
        None,
        config=type(quantised.config)(**values),
        state_dict=quantised.state_dict(),
        dtype=torch.float32,
    )
    plain.generation_config = quantised.generation_config
    return plain, tokenizer


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion.

    Where there is a chat template, the first special token it writes behind an assistant's message
    (Gemma's end of turn, for one, is not its end-of-text token); otherwise the end-of-text token.
    """
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "two"}]
        text = tokenizer.apply_chat_template(turn, tokenize=False)
        tail = tokenizer.encode(text.rpartition("two")[2], add_special_tokens=False)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        for token in tail:
            if token in special:
                return token
    return tokenizer.eos_token_id


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion, ascending: generation stops at any of them."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = []
    elif isinstance(configured, int):
        configured = [configured]
    return sorted({*configured, tokenizer.eos_token_id, end_of_turn(tokenizer)})


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, config: ModelConfig) -> list[int]:
    """Token ids of one prompt, as the policy sees it.

    With a chat template (and `config.chat_template`): the user's message, or the messages that the
    text stands for (tasks/messages.py), behind the system prompt, if one is set, up to where the
    assistant's message begins. Without: the plain text, messages with an empty line between them,
    with a BOS token where the tokenizer adds one. Raises ConfigError where the template refuses.
    """
    messages = read_messages(text)
    if config.chat_template and tokenizer.chat_template:
        if config.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": config.system_prompt})
        try:
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            raise ConfigError(f"model.chat_template: the template says: {error}") from None
    ids = tokenizer.encode("\n\n".join(message["content"] for message in messages))
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        ids = ids[:-1]
    if not ids:
        raise ConfigError("prompt: empty, and this tokenizer puts no token in front of a text")
    return ids


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one completion: its text with no special tokens, then `end_of_turn`."""
    return [*tokenizer.encode(text, add_special_tokens=False), end_of_turn(tokenizer)]


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text each token adds, so that the pieces joined are the text; as many as there are ids.

    A character made of several tokens stands at the last of them, '' at the others. Each token is
    decoded behind the one before it, since some tokenizers drop a leading space.
    """
    pieces: list[str] = []
    start = read = 0  # ids[start:read]: the tokens of the last piece, for context
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[start:read], clean_up_tokenization_spaces=False)
        text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(ids):  # an unfinished character
            pieces.append("")
        else:
            pieces.append(text[len(before) :])
            start, read = read, end
    return pieces


def _locate(config: ModelConfig) -> tuple[str, str]:
    """(folder or hub id, GGUF file in it or '') of the model a config names."""
    if config.path == "pocket":
        if not (POCKET_FOLDER / "model.safetensors").exists():
            raise ConfigError(
                "model.path: the pocket model has no weights yet; "
                "run `python -m workbench.pocket.make --out workbench/pocket`"
            )
        return str(POCKET_FOLDER), ""
    if config.path == "smollm2":
        if not (smollm2_folder() / "model.safetensors").exists():
            raise ConfigError(
                "model.path: smollm2 is not here yet; run `python -m workbench fetch smollm2`"
            )
        return str(smollm2_folder()), ""
    path, inside = Path(config.path).expanduser(), Path(config.gguf_file)
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(f"model.gguf_file: {config.gguf_file!r} is not inside {config.path!r}")
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if path.is_file():
        raise ConfigError(f"model.path: {config.path!r} is neither a folder nor a .gguf file")
    if path.is_dir():
        if config.gguf_file:
            if not (path / config.gguf_file).is_file():
                raise ConfigError(f"model.gguf_file: no {config.gguf_file!r} in {config.path!r}")
        elif not (path / "config.json").is_file():
            raise ConfigError(f"model.path: no config.json in {config.path!r}, so no model")
        return str(path), config.gguf_file
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(config.path):
        raise ConfigError(f"model.path: there is no {config.path!r}")
    return config.path, config.gguf_file


def _check_causal(path: str, architecture: PretrainedConfig) -> None:
    """Refuse encoders and the like, which transformers would load with a warning."""
    saved = [name.lower() for name in architecture.architectures or []]
    known = type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING
    name = MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture)].__name__ if known else ""
    if not known or (saved and name.lower() not in saved):
        shown = ", ".join(architecture.architectures or [architecture.model_type])
        raise ConfigError(f"model.path: {path!r} is {shown}, not a causal language model")
