"""Each detector finds its trouble where it was put, and keeps silent on noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from tests.diagnosis.made import healthy
from workbench.config import DiagnosisConfig, RunConfig
from workbench.diagnosis import DETECTORS, Detector, Symptom, Watch, diagnose
from workbench.diagnosis.catalogue import rows_of
from workbench.diagnosis.detector import not_so_yet
from workbench.records import Finding

ONSET = 30
SETTINGS = RunConfig().flat()


def found(frame: pd.DataFrame, detector: str) -> list[Finding]:
    alone = [d for d in DETECTORS if d.name == detector]  # none looks at another's findings
    return diagnose(frame, settings=SETTINGS, detectors=alone).findings


def _set(column: str, value: float | Callable[[pd.Series], pd.Series]) -> Callable[..., None]:
    def change(frame: pd.DataFrame, late: pd.Series) -> None:
        before = frame.loc[late, column]
        frame.loc[late, column] = value(before) if callable(value) else value

    return change


def _once(column: str, factor: float) -> Callable[..., None]:
    def change(frame: pd.DataFrame, late: pd.Series) -> None:
        frame.loc[frame["step"] == ONSET, column] *= factor

    return change


def _flat_reward(*changes: Callable[..., None]) -> Callable[..., None]:
    def change(frame: pd.DataFrame, late: pd.Series) -> None:
        rng = np.random.default_rng(1)
        frame["reward"] = 0.4 + rng.normal(0, 0.05, len(frame))
        for one in changes:
            one(frame, late)

    return change


def _measured(column: str, value: float) -> Callable[..., None]:
    def change(frame: pd.DataFrame, late: pd.Series) -> None:
        frame.loc[late & frame[column].notna(), column] = value

    return change


def _all(*changes: Callable[..., None]) -> Callable[..., None]:
    def change(frame: pd.DataFrame, late: pd.Series) -> None:
        for one in changes:
            one(frame, late)

    return change


def _falling_entropy(frame: pd.DataFrame, late: pd.Series) -> None:
    frame.loc[late, "entropy"] *= np.exp(-0.12 * (frame.loc[late, "step"] - ONSET))


def _share_of_errors(frame: pd.DataFrame, late: pd.Series) -> None:
    frame["reward/errors"] = np.where(late, 0.2, 0.01)


TROUBLES: dict[str, tuple[Callable[..., None], int]] = {
    # detector: what goes wrong at step 30, and how many steps the onset told may be off
    "non_finite": (_set("loss/sft", np.inf), 0),
    "gradient_spike": (_once("grad_norm", 40.0), 0),
    "loss_spike": (_once("loss/sft", 20.0), 0),
    "vanishing_gradient": (_flat_reward(_set("grad_norm/rl", 1e-3)), 1),
    "zero_gradient": (_flat_reward(_set("coordinator/grad_norm", 0.0)), 0),
    "ratio_outliers": (_set("baseline/log_ratio_max", 6.0), 1),
    "clipping": (_set("baseline/clip_ratio", 0.3), 1),
    "logprob_mismatch": (_set("sampling/sampling_logp_difference/mean", 0.3), 0),
    "kl_blowup": (_flat_reward(_set("kl", 3.0)), 1),
    "entropy_collapse": (_flat_reward(_falling_entropy), 25),  # a slope begins where it is flat
    "entropy_explosion": (_flat_reward(_set("entropy", 1.5)), 1),
    "zero_variance_groups": (
        _all(_set("frac_reward_zero_std", 0.9), _set("groups/too_hard", 0.9)),
        2,
    ),
    "truncation": (_set("completions/clipped_ratio", 0.3), 1),
    "length_explosion": (
        _flat_reward(_measured("eval/accuracy", 0.3), _set("completions/mean_length", 60.0)),
        1,
    ),
    "repetition": (_set("completions/repetition", 0.4), 1),
    "gibberish": (_set("completions/reference_nll", 4.0), 1),
    "reward_hacking": (_all(_measured("eval/accuracy", 0.05), _set("reward", 0.95)), 28),
    "verifier_noisy": (_set("verifier/inconsistent", 0.3), 1),
    "reward_errors": (_share_of_errors, 2),
    "verifier_silent": (_all(_set("reward", 0.0), _set("reward_std", 0.0)), 0),
    "demonstrations_rejected": (_set("demonstrations/rejected", 1.0), 1),
    "sft_rl_conflict": (_set("alignment/cosine", -0.3), 2),
    "coordinator_harm": (_set("gain/shared", -0.2), 2),
    "coordinator_blowup": (_measured("coordinator/ratio", 0.6), 0),
    "baseline_drift": (_set("gain/ess", 0.1), 1),
    "accuracy_fall": (_measured("eval/accuracy", 0.1), 0),
    "slow_phase": (_set("seconds/rollouts", 3.0), 1),
}
WHOLE_RUN: dict[str, Callable[[pd.DataFrame], None]] = {
    "kl_strangled": lambda frame: frame.__setitem__("kl", 1e-6),
    "coordinator_inert": lambda frame: frame.__setitem__("coordinator/ratio", 1e-6),
    "unfollowed_weights": lambda frame: frame.__setitem__("alignment/skipped_share", 0.02),
    "plateau": lambda frame: frame.__setitem__(
        "reward", 0.5 + np.random.default_rng(4).normal(0, 0.05, len(frame))
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_told_once_with_its_onset(name: str):
    frame = healthy()
    change, off = TROUBLES[name]
    change(frame, frame["step"] >= ONSET)
    told = found(frame, name)
    assert told, f"{name} was not told"
    first = min(told, key=lambda f: f.step)
    assert abs(first.since - ONSET) <= off
    assert ONSET <= first.step <= ONSET + 25 and first.since <= first.step
    by_kind = [f.key.split("@")[0] for f in told if f.severity == first.severity]
    assert len(by_kind) == len(set(by_kind))  # no step by step repetition
    assert first.evidence and first.causes and first.reference
    assert first.setting == next(iter(first.suggestion), "")


@pytest.mark.parametrize("name", WHOLE_RUN)
def test_what_is_wrong_from_the_start_is_told(name: str):
    frame = healthy()
    WHOLE_RUN[name](frame)
    if name == "plateau":
        frame["eval/accuracy"] = np.nan
    assert found(frame, name)


def test_all_detectors_are_tried_here_and_have_a_policy():
    names = [detector.name for detector in DETECTORS]
    assert sorted([*TROUBLES, *WHOLE_RUN]) == sorted(names)
    policies = set(DiagnosisConfig.model_fields) - {"finding_warm_up", "finding_cooldown"}
    assert policies == set(names)


@pytest.mark.parametrize("seed", range(12))
def test_a_healthy_run_gives_no_warning(seed: int):
    assert [f for f in diagnose(healthy(seed)).findings if f.severity != "note"] == []


def test_settings_named_by_findings_exist():
    known = {*SETTINGS, *RunConfig().with_changes(task={"kind": "dataset", "data": "x"}).flat()}
    for name, (change, _) in TROUBLES.items():
        frame = healthy()
        change(frame, frame["step"] >= ONSET)
        for finding in found(frame, name):
            assert set(finding.suggestion) <= known, finding.detector


@pytest.mark.parametrize("name", ["kl_blowup", "clipping", "accuracy_fall", "gradient_spike"])
def test_findings_of_a_part_are_the_first_ones_of_the_whole(name: str):
    frame = healthy()
    TROUBLES[name][0](frame, frame["step"] >= ONSET)
    whole = sorted(diagnose(frame, settings=SETTINGS).findings, key=lambda f: f.key)
    for cut in (10, 29, 30, 33, 41, 60):
        part = diagnose(frame[frame["step"] <= cut], settings=SETTINGS).findings
        assert sorted(part, key=lambda f: f.key) == [f for f in whole if f.step <= cut]


def test_what_is_so_already_is_not_suggested():
    """Else a fork with the suggestion would be the same run once more."""
    settings = {"a": 1.0, "b": 2, "verifier_fault": "none", "reward_flip": 0.2}
    suggestion = {"a": 1.0, "b": 3, "c": None, "verifier_fault": "none", "reward_flip": 0.0}
    assert not_so_yet(settings, suggestion) == {"b": 3, "c": None, "reward_flip": 0.0}
    assert not_so_yet({}, suggestion) == {"a": 1.0, "b": 3, "c": None}  # another trainer's log
    frame = healthy()
    against = {"alignment/cosine": -0.5, "alignment/noise": 0.1}
    for weight, expected in ((0.3, 0.8), (0.9, 0.95), (1.0, None)):
        in_force = SETTINGS | {"rl_weight": weight}
        told = diagnose(frame.assign(**against), settings=in_force).findings
        (finding,) = [f for f in told if f.detector == "sft_rl_conflict"]
        assert finding.suggestion.get("rl_weight") == expected


def test_a_suggestion_starts_from_the_value_in_force():
    frame = healthy()
    frame.loc[frame["step"] >= 20, "base_lr"] = 1e-2
    frame.loc[frame["step"] >= ONSET, "kl"] = 3.0
    frame["reward"] = 0.4
    (finding, *_) = found(frame, "kl_blowup")
    assert finding.suggestion["base_lr"] == pytest.approx(1e-2 / 5)
    assert finding.suggestion["kl_coef"] == pytest.approx(1e-2)  # ten times the default


@pytest.mark.parametrize("odd", [[3.0, 0.1, 3.0], [0.1, 3.0, 3.0], [0.6, 0.6, 0.6]])
def test_the_kl_that_is_told_is_the_kl_that_is_too_high(odd: list[float]):
    frame = healthy()
    frame["reward"], frame["eval/accuracy"], frame["kl"] = 0.4, 0.3, 0.1
    frame.loc[20:22, "kl"] = odd
    (finding,) = [f for f in found(frame, "kl_blowup") if ".jump" not in f.key]
    said = float(finding.message.split(" is ")[1].split(" nats")[0])
    assert said == finding.evidence["kl"] == sorted(odd)[1] >= 0.5


@pytest.mark.parametrize(("reward", "told"), [(0.4, [4]), (0.6, [])])
def test_a_high_kl_needs_no_warm_up_unless_it_pays(reward: float, told: list[int]):
    frame = healthy(n_steps=7)
    frame["kl"] = [0.0, 0.6, 0.9, 0.8, 1.0, 1.1, 1.2]
    frame["reward"] = [0.4, 0.4, *[reward] * 5]
    assert [f.step for f in found(frame, "kl_blowup")] == told


def test_the_shared_gain_alone_accuses_nobody():
    frame = healthy()
    frame["eval/baseline_accuracy"] = frame["eval/accuracy"]
    frame.loc[frame["step"] >= ONSET, "gain/shared"] = -0.2
    assert [f.severity for f in found(frame, "coordinator_harm")] == ["note"]
    frame["eval/baseline_accuracy"] -= 0.02  # both were asked, and the joint policy is ahead
    assert not found(frame, "coordinator_harm")


@pytest.mark.parametrize(("gain", "told"), [([0.5, -0.2], 0), ([-0.2, -0.2], 1), ([-0.06] * 2, 0)])
def test_two_paired_gains_accuse_beyond_their_error(gain: list[float], told: int):
    frame = healthy()
    frame["gain/paired"] = frame["gain/paired_se"] = np.nan
    frame.loc[[19, 39], "gain/paired"] = gain
    frame.loc[[19, 39], "gain/paired_se"] = 0.05  # −0.06 ± 0.035 is none
    assert [f.severity for f in found(frame, "coordinator_harm")] == ["warning"] * told


def test_a_reward_that_holds_while_the_accuracy_falls_is_told_at_the_first_evaluation():
    frame = healthy()
    frame["reward"] = 0.7 + np.random.default_rng(2).normal(0, 0.02, len(frame))
    frame.loc[frame["step"].isin([4, 5]), "reward"] = 0.75
    frame.loc[0, "eval/accuracy"] = 0.4
    frame.loc[frame["eval/accuracy"].notna() & (frame["step"] > 1), "eval/accuracy"] = 0.0
    first = min(found(frame, "reward_hacking"), key=lambda f: f.step)
    assert (first.step, first.since) == (5, 5)
    frame["reward"] = np.where(frame["step"] > 1, 0.0, 0.7)  # both fall: the policy is broken
    assert not found(frame, "reward_hacking")


@pytest.mark.parametrize(
    ("column", "severity"), [("grad_norm", "warning"), ("grad_norm/sft", "note")]
)
def test_a_third_spike_is_a_warning_where_it_moves_the_weights(column: str, severity: str):
    frame = healthy()
    frame.loc[frame["step"].isin([20, 25, 30]), column] *= 40.0
    last = max(found(frame, "gradient_spike"), key=lambda f: f.severity == "warning")
    assert last.severity == severity


def test_a_part_of_the_gradient_that_is_switched_off_is_none_that_fades():
    """As HPT does with SFT, whose gradients are the larger ones."""
    frame = healthy()
    frame["reward"] = frame["eval/accuracy"] = 0.4
    late = frame["step"] >= ONSET
    frame["grad_norm"] = np.where(late, 0.1, 10.0)
    frame.loc[late, "grad_norm/sft"] = np.nan
    assert not found(frame, "vanishing_gradient")
    assert found(frame.drop(columns=["grad_norm/sft", "grad_norm/rl"]), "vanishing_gradient")
    frame.loc[late, "grad_norm/rl"] = 1e-3
    assert found(frame, "vanishing_gradient")


def test_groups_without_variance_are_a_note_while_the_run_learns():
    frame = healthy()
    late = frame["step"] >= ONSET
    frame.loc[late, ["frac_reward_zero_std", "groups/too_hard"]] = 0.85
    frame["reward"] = 0.1 + 0.003 * frame["step"]
    assert {f.severity for f in found(frame, "zero_variance_groups")} == {"note"}
    frame["reward"], frame["eval/accuracy"] = 0.2, 0.2
    assert {f.severity for f in found(frame, "zero_variance_groups")} == {"note", "warning"}


def test_an_entropy_that_buys_held_out_accuracy_is_no_collapse():
    frame = healthy()
    rng = np.random.default_rng(3)
    frame["reward"] = 0.4 + rng.normal(0, 0.05, len(frame))
    frame["entropy"] = 0.1 * np.exp(-0.05 * frame["step"])
    evaluated = frame["eval/accuracy"].notna()
    frame.loc[evaluated, "eval/accuracy"] = 0.4
    assert found(frame, "entropy_collapse")
    frame.loc[evaluated, "eval/accuracy"] = np.linspace(0.0, 1.0, int(evaluated.sum())) ** 0.5
    collapse = found(frame[frame["step"] <= 20], "entropy_collapse")
    assert not [f for f in collapse if f.severity != "note"]


def test_a_missing_metric_skips_its_detectors_by_name():
    frame = healthy().drop(columns=["kl", "eval/accuracy"])
    skipped = {s.detector: s.reason for s in diagnose(frame).skipped}
    assert skipped["kl_blowup"] == skipped["kl_strangled"] == "no kl"
    assert skipped["accuracy_fall"] == skipped["reward_hacking"] == "no eval/accuracy"
    assert "plateau" not in skipped  # the reward is enough for it


def test_a_baseline_that_is_no_longer_updated_is_told_within_three_steps():
    frame = healthy()
    frame["loss/baseline_rl"] = 0.1
    assert not found(frame, "baseline_drift")
    frame.loc[frame["step"] >= ONSET, "baseline/grad_norm"] = np.nan
    (finding,) = found(frame, "baseline_drift")
    assert (finding.since, finding.step) == (ONSET, ONSET + 2)


def test_a_failing_detector_is_switched_off_with_a_note_and_the_others_go_on():
    def fail(history: object) -> list[Symptom]:
        raise ZeroDivisionError("by zero")

    broken = Detector("plateau", (("reward",),), fail, "")
    frame = healthy()
    TROUBLES["truncation"][0](frame, frame["step"] >= ONSET)
    found = diagnose(frame, detectors=[broken, *DETECTORS])
    notes = [f for f in found.findings if f.detector == "plateau"]
    assert [(f.severity, f.step) for f in notes] == [("note", 9)]  # after the warm-up, once
    assert "ZeroDivisionError" in notes[0].message
    assert any(f.detector == "truncation" for f in found.findings)
    assert ("plateau", "failed: ZeroDivisionError: by zero") in [
        (s.detector, s.reason) for s in found.skipped
    ]


def test_a_trouble_is_told_again_only_after_the_cooldown_or_when_it_grows_worse():
    def loud(history: object) -> list[Symptom]:
        step = history.step  # type: ignore[attr-defined]
        if step in (10, 12, 40):
            return [Symptom("warning", step, "loud", {})]
        return [Symptom("critical", step, "louder", {})] if step == 14 else []

    watch = Watch([Detector("loud", (), loud, "")], warm_up=5, cooldown=20)
    told = [f.step for step, row in rows_of(healthy()) for f in watch.see(step, row, {})]
    assert told == [10, 14, 40]


def test_warm_up_holds_back_all_but_non_finite_values():
    frame = healthy(n_steps=5)
    frame["completions/clipped_ratio"] = 0.9
    frame.loc[2, "grad_norm"] = np.inf
    assert [f.detector for f in diagnose(frame, warm_up=5).findings] == ["non_finite"]
    skipped = {s.detector: s.reason for s in diagnose(frame, warm_up=5).skipped}
    assert skipped["truncation"] == "no more than 5 steps"
