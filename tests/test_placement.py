"""Autocast, checkpointing, LoRA targets, no reference, offloading: the step stays what it is."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.tiny import (
    float64_everywhere,
    make_policy,
    numbers,
    save_tiny_llama,
    small_config,
    two_steps,
)
from workbench import placement
from workbench.config import ConfigError
from workbench.sampling import Noise, completion_logits, pack, sample, token_logprobs
from workbench.training.gradients import sft_pass

MEASURED = {"alignment_every": 1, "rollout_alignment_every": 1, "token_views_every": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def test_checkpointed_layers_give_the_same_steps(model: Path) -> None:
    with float64_everywhere():
        config = small_config(model, **MEASURED)
        plain, first = two_steps(config, double=True)
        again, second = two_steps(config.with_changes(gradient_checkpointing=True), double=True)
    for a, b in zip(first, second, strict=True):
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-9, abs=1e-12)
        assert [row.token_ids for row in a.rollouts] == [row.token_ids for row in b.rollouts]
        for own, other in zip(a.demonstrations, b.demonstrations, strict=True):
            assert own.rl_alignment == pytest.approx(other.rl_alignment, rel=1e-9)
    for parts in ("base", "baseline_base", "coordinator"):
        for name, parameter in getattr(plain, parts).items():
            assert torch.equal(parameter, getattr(again, parts)[name]), (parts, name)


def test_micro_batches_of_any_size_give_the_same_steps(model: Path) -> None:
    """Every gradient of two whole steps, in float64: a text at a time, some, all at once."""
    found = []
    with float64_everywhere():
        for tokens in (1, 40, 100_000):
            config = small_config(model, micro_batch_tokens=tokens, **MEASURED)
            found.append(two_steps(config, double=True))
    (whole, expected), others = found[-1], found[:-1]
    for policy, records in others:
        for a, b in zip(records, expected, strict=True):
            assert numbers(a) == pytest.approx(numbers(b), rel=1e-9, abs=1e-12)
            for own, other in zip(a.demonstrations, b.demonstrations, strict=True):
                assert own.rl_alignment == pytest.approx(other.rl_alignment, rel=1e-9)
        for parts in ("base", "baseline_base", "coordinator"):
            for name, parameter in getattr(whole, parts).items():
                torch.testing.assert_close(
                    getattr(policy, parts)[name], parameter, rtol=1e-9, atol=1e-12
                )


def test_checkpointing_keeps_fewer_activations(model: Path) -> None:
    kept = {}
    for on in (False, True):
        policy = make_policy(small_config(model, gradient_checkpointing=on))
        batch = pack([[5, 6, 7]] * 4, [[8] * 20] * 4, policy.pad_id)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            token_logprobs(completion_logits(policy.model, batch), batch)
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


def test_generation_is_the_same_with_checkpointing(model: Path) -> None:
    texts = []
    for on in (False, True):
        policy = make_policy(small_config(model, gradient_checkpointing=on))
        batch = pack([[5, 6]], [[7, 8]], policy.pad_id)
        completion_logits(policy.model, batch).sum().backward()  # layers are told to train here
        done = sample(
            policy.model,
            policy.tokenizer,
            [[5, 6, 7], [9, 4]],
            noise=None,
            sequences=[0, 1],
            end_ids=policy.end_ids,
            max_new_tokens=12,
            environments=None,
        )
        texts.append(done.token_ids)
    assert texts[0] == texts[1]


def test_generation_casts_each_weight_once(model: Path) -> None:
    """Not once a token; the text is the same, and passes with gradients follow as ever."""
    policy = make_policy(small_config(model, compute_dtype="bfloat16"))
    weights = {p.data_ptr() for p in (*policy.base.values(), *policy.coordinator.values())}

    class Casts(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if operation is torch.ops.aten._to_copy.default and args[0].data_ptr() in weights:
                self.seen += 1
            return operation(*args, **(kwargs or {}))

    def texts() -> tuple[list[list[int]], list[list[float]], int]:
        with Casts() as casts:
            done = sample(
                policy.model,
                policy.tokenizer,
                [[5, 6, 7], [9, 4]],
                noise=Noise(0, 1, "train"),
                sequences=[0, 1],
                end_ids=[],
                max_new_tokens=6,
                environments=None,
            )
        return done.token_ids, done.logprob, casts.seen

    kept = texts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.sampling.casts_kept", lambda model: nullcontext())
        cast_again = texts()
    assert kept[:2] == cast_again[:2]
    assert 0 < kept[2] <= len(weights) and cast_again[2] == 6 * kept[2]
    assert not torch.is_autocast_enabled("cpu")
    batch = pack([[5, 6]], [[7, 8]], policy.pad_id, policy.device)
    token_logprobs(completion_logits(policy.model, batch), batch).sum().backward()
    assert all(p.grad is not None for p in policy.base.values())


def test_bf16_computes_near_float32_and_leaves_the_weights_float32(model: Path) -> None:
    config = small_config(model)
    exact, rounded = make_policy(config), make_policy(config.with_changes(compute_dtype="bfloat16"))
    batch = pack([[5, 6, 7], [8]], [[9, 10, 4], [11, 3, 12]], exact.pad_id)
    found = []
    for policy in (exact, rounded):
        logits = completion_logits(policy.model, batch)
        assert logits.dtype == torch.float32
        objective = token_logprobs(logits, batch).sum()
        parameters = [*policy.base.values(), *policy.coordinator.values()]
        found.append(torch.autograd.grad(objective, parameters, allow_unused=True))
        assert all(p.dtype == torch.float32 for p in parameters)
    a, b = (torch.cat([g.flatten() for g in side if g is not None]) for side in found)
    assert not torch.equal(a, b)  # it did compute in bf16
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.995
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_in_a_pass_leaves_no_autocast_behind(model: Path) -> None:
    policy = make_policy(small_config(model, compute_dtype="bfloat16"))
    batch = pack([[5]], [[6]], policy.pad_id)
    wrong = replace(batch, input_ids=batch.input_ids + 10_000)
    with pytest.raises(IndexError):
        completion_logits(policy.model, wrong)
    assert not torch.is_autocast_enabled("cpu")


def test_the_coordinator_sits_on_the_targets_alone(model: Path) -> None:
    policy = make_policy(small_config(model, lora_targets=["q_proj", "v_proj"]))
    assert {name.rsplit(".", 2)[-2] for name in policy.coordinator} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="model.lora_targets: .*no_proj"):
        make_policy(small_config(model, lora_targets=["no_proj"]))


def test_without_a_reference_there_is_no_kl(model: Path) -> None:
    policy, records = two_steps(small_config(model, reference="none"))
    assert policy.reference is None
    assert "kl" not in records[0].metrics
    without_kl, zero = two_steps(small_config(model, kl_coef=0.0))
    for name, parameter in policy.base.items():
        assert torch.equal(parameter, without_kl.base[name])
    assert all(row.reference_logprob == [] for row in records[0].rollouts)


def test_a_reference_in_bf16_is_half_as_large_and_near(model: Path) -> None:
    exact = make_policy(small_config(model))
    half = make_policy(small_config(model, reference_dtype="bfloat16"))
    batch = pack([[5, 6, 7]], [[9, 10, 4]], exact.pad_id)
    with torch.no_grad():
        a = completion_logits(exact.of("reference"), batch)
        b = completion_logits(half.of("reference"), batch)
    assert {p.dtype for p in half.of("reference").parameters()} == {torch.bfloat16}
    assert torch.allclose(a, b, atol=0.05 * float(a.abs().max()))


EVERYTHING = ("reference", "baseline", "base", "gradients", "gradient_sum")


@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({}, EVERYTHING[:2]),
        ({}, EVERYTHING[:4]),
        ({}, EVERYTHING),
        ({"baseline_mode": "reset"}, EVERYTHING),
        ({"method": "alternating"}, EVERYTHING),
    ],
)
def test_offloading_changes_no_number(
    model: Path, settings: dict[str, object], waits: tuple[str, ...]
) -> None:
    config = small_config(model, **MEASURED, **settings)
    plain, first = two_steps(config)
    waiting, second = two_steps(config.with_changes(offload=waits))
    for a, b in zip(first, second, strict=True):
        assert numbers(a) == numbers(b)
    for parts in ("base", "baseline_base", "coordinator"):
        for name, parameter in getattr(plain, parts).items():
            assert torch.equal(parameter, getattr(waiting, parts)[name]), (parts, name)
    assert waiting.baseline is not None
    for name, w in waiting.coordinator.items():  # still one and the same in both policies
        shared = dict(waiting.baseline.named_parameters())
        assert any(w is p for p in shared.values()), name


def test_one_part_is_in_place_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(small_config(model, offload=EVERYTHING[:3]))
    names = {policy.model: "joint", policy.baseline: "baseline", policy.reference: "reference"}
    in_place: set[str] = set()
    most = 0

    def move(module: torch.nn.Module, device: str) -> None:
        nonlocal most
        name = names[module]  # type: ignore[index]
        in_place.add(name) if device == "accelerator" else in_place.discard(name)
        most = max(most, len(in_place))

    monkeypatch.setattr(placement, "_move", lambda module, device: move(module, str(device)))
    monkeypatch.setattr(policy._offloading, "device", "accelerator")
    for name in ("joint", "baseline", "joint", "reference", "baseline", "joint"):
        policy.of(name)  # type: ignore[arg-type]
        assert in_place == {name}
    policy.wait()
    assert most == 1 and not in_place


def test_a_pass_holds_one_gradient_and_a_tensor(model: Path) -> None:
    """What autograd leaves in `.grad` is taken at once: never two parameters', none in the end."""
    policy = make_policy(small_config(model))
    parameters = [*policy.base.values(), *policy.coordinator.values()]
    batch = pack([[5, 6, 7], [8]], [[9, 10, 4], [11, 3, 12]], policy.pad_id)
    held: list[int] = []
    hooks = [
        p.register_post_accumulate_grad_hook(
            lambda p: held.append(sum(q.grad is not None for q in parameters))
        )
        for p in parameters
    ]  # these are called before the sum's own
    found, _ = sft_pass(policy, policy.coordinator, batch, None, max_tokens=8)
    for hook in hooks:
        hook.remove()
    assert len(held) >= 2 * len(policy.base) and set(held) == {1}
    objective = token_logprobs(completion_logits(policy.model, batch), batch).sum()
    whole = torch.autograd.grad(objective / batch.n_tokens, parameters, materialize_grads=True)
    summed = [*found.gradient.base.values(), *found.gradient.coordinator.values()]
    for a, b in zip(whole, summed, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_the_sum_alone_cannot_wait(model: Path) -> None:
    with pytest.raises(ConfigError, match='"gradient_sum" goes with "gradients"; name both'):
        small_config(model, offload=["gradient_sum"])


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices in Python",
)
@pytest.mark.parametrize(
    "names", ["bridge", pytest.param("reset,alternating", marks=pytest.mark.slow)]
)
def test_on_a_device_of_its_own_nothing_is_where_it_should_not_be(model: Path, names: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.strict_device", str(model), names],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
