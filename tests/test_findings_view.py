"""Findings on the page and on the curves: ordered, complete, and never markup."""

from __future__ import annotations

from dataclasses import asdict
from html.parser import HTMLParser

import pandas as pd

from tests.diagnosis.made import healthy
from workbench import plots
from workbench.records import Finding
from workbench.ui.findings import findings_html, findings_line

HOSTILE = "</li><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


def frame(*findings: Finding, live: bool = True) -> pd.DataFrame:
    columns = [*Finding.__dataclass_fields__, "live"]
    rows = [asdict(f) | {"live": live} for f in findings]
    return pd.DataFrame(rows, columns=columns).astype({"live": bool})


def finding(severity: str, since: int, **changes: object) -> Finding:
    values: dict[str, object] = {
        "step": since + 2,
        "severity": severity,
        "detector": "kl_blowup",
        "message": f"{severity} of step {since}",
        "evidence": {"metric": "kl", "kl": 3.0},
        "setting": "base_lr",
        "since": since,
        "key": f"kl_blowup@{since + 2}",
        "causes": ["a cause"],
        "suggestion": {"base_lr": 1e-5, "kl_coef": None},
        "reference": "somewhere",
    }
    return Finding(**{**values, **changes})  # type: ignore[arg-type]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_worst_come_first_and_those_a_rewind_took_back_last():
    told = pd.concat(
        [
            frame(finding("critical", 1), live=False),
            frame(finding("note", 2), finding("critical", 9), finding("warning", 3)),
            frame(finding("critical", 4)),
        ]
    )
    text = Tags(findings_html(told)).text
    places = [
        text.index(f"{severity} of step {since}")
        for severity, since in (
            ("critical", 4), ("critical", 9), ("warning", 3), ("note", 2), ("critical", 1),
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert text.count("before a rewind") == 1
    assert findings_line(told).count("2 critical, 1 warning") == 1


def test_a_finding_shows_evidence_cause_and_settings():
    text = Tags(findings_html(frame(finding("warning", 3)))).text
    for part in ("since step 3", "kl 3", "a cause", "base_lr = 1e-05", "kl_coef", "somewhere"):
        assert part in text


def test_an_earlier_workbench_s_finding_is_shown_too():
    old = Finding(7, "warning", "reexecution", "differs", {}, "seed")
    text = Tags(findings_html(frame(old))).text
    assert "since step 7" in text and "seed" in text


def test_nothing_in_a_finding_is_markup():
    hostile = finding(
        HOSTILE,
        3,
        detector=HOSTILE,
        message=HOSTILE,
        evidence={HOSTILE: HOSTILE},
        causes=[HOSTILE],
        suggestion={HOSTILE: HOSTILE},
        key=HOSTILE,
        reference=HOSTILE,
    )
    for markup in (
        findings_html(frame(hostile)),
        findings_line(frame(finding("critical", 1, message=HOSTILE))),
    ):
        assert not {"script", "img"} & set(Tags(markup).found)
        assert HOSTILE in Tags(markup).text


def test_no_findings_say_so_and_leave_the_header_alone():
    assert "Nothing looks wrong" in findings_html(frame())
    assert findings_line(frame(finding("note", 3))) == findings_line(frame()) == ""


def test_curves_mark_onsets_on_the_panel_of_the_metric_and_warnings_on_the_reward():
    told = frame(
        finding("warning", 12, message="<b>$x$"),
        finding("note", 20),
        finding("critical", 30, evidence={"metric": "eval/accuracy"}),
    )

    def marks(panel: str) -> list[int]:
        return [s.x0 for s in plots.curves(healthy(), panel, None, told).layout.shapes]

    assert marks("kl") == [12, 20]
    assert marks("accuracy") == [30]
    assert marks("reward") == [12, 30]  # no notes
    assert marks("length") == []
    (first, *_) = plots.curves(healthy(), "kl", None, told).layout.annotations
    assert first.hovertext == "warning: &lt;b&gt;&#36;x&#36;"


def marks(*findings: Finding) -> list[tuple[float, str, str]]:
    """The triangles on the panel "kl": step, colour, what hovering says."""
    figure = plots.curves(healthy(200), "kl", findings=frame(*findings))
    assert len(figure.layout.shapes) == len(figure.layout.annotations)
    assert [shape.x0 for shape in figure.layout.shapes] == [a.x for a in figure.layout.annotations]
    return [(a.x, a.font.color, a.hovertext) for a in figure.layout.annotations]


def test_findings_of_a_step_share_a_mark_of_the_worst_ones_colour():
    (critical,) = marks(finding("critical", 1))
    (note,) = marks(finding("note", 7))
    both = marks(finding("note", 7), finding("critical", 1), finding("critical", 7))
    assert [x for x, _, _ in both] == [1, 7]
    assert both[0][1] == both[1][1] == critical[1] != note[1]
    assert both[1][2] == "note: note of step 7<br>critical: critical of step 7"
    unknown = marks(finding("fatal", 5), finding("note", 7))
    assert [colour for _, colour, _ in unknown] == [note[1], note[1]]


def test_of_many_findings_the_worst_and_the_earliest_are_marked():
    found = [finding("note", step) for step in range(1, 100)]
    found += [finding("critical", step) for step in (90, 150, 160)]
    steps = [x for x, _, _ in marks(*found)]
    assert steps == [*range(1, 28), 90, 150, 160]
