"""What a page draws from, against the whole frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.frames import make_records
from workbench.config import RunConfig
from workbench.store import RunFolderError, RunStore, open_run, overview, schema

NAMES = ("metrics", *schema.STEP_ROWS)


def assert_same(kept: pd.DataFrame, whole: pd.DataFrame) -> None:
    """Equal up to single precision in metrics, arrays for lists, and the dtype of texts."""
    assert list(kept) == list(whole) and len(kept) == len(whole)
    for frame in (kept, whole):  # and not numpy's other integer of that size
        assert frame["step"].dtype.type is np.int64
    for name in whole:
        if name == "singular_values":
            assert [list(values) for values in kept[name]] == list(whole[name])
        elif whole[name].dtype == "float64":
            single = whole[name].astype(kept[name].dtype)
            assert np.array_equal(kept[name], single, equal_nan=True), name
        else:
            assert list(kept[name]) == list(whole[name]), name


@pytest.mark.parametrize("at_once", [2, overview.AT_ONCE])
def test_an_overview_of_a_short_run_is_all_of_it(at_once, tmp_path, monkeypatch):
    """After steps, metrics added or replaced later, and rewinds, looked at now and then."""
    monkeypatch.setattr(overview, "AT_ONCE", at_once)
    records = make_records(9)
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        looking = open_run(store.path)

        def check():
            for name in NAMES:
                assert_same(looking.overview(name), looking.frame(name))

        check()
        for record in records[:3]:
            store.append(record)
        check()
        for value in (1.0, 2.0):  # the second takes the first one's row number
            store.add_metrics(2, {"late": value})
            check()
        store.append(records[3])
        store.add_metrics(4, {"kl": 7.0})
        check()
        own = looking.overview("gain")  # a caller may change it
        own["gain"] = 0.0
        store.append(records[4])
        check()
        store.rewind(2)
        check()
        for record in records[2:6]:
            store.append(record)
            check()


@pytest.fixture
def small(monkeypatch):
    """An overview that thins early."""
    monkeypatch.setattr(overview, "NEWEST", 10)
    monkeypatch.setattr(overview, "OLDER", 24)
    monkeypatch.setattr(overview, "MOST", 50)


@pytest.mark.parametrize("looked_every", [1, 7, 400])
def test_metrics_of_a_long_run_keep_the_newest_steps_and_each_ones_extremes(
    looked_every, tmp_path, monkeypatch
):
    """In every stretch of the older steps; also where some metrics are measured now and then."""
    monkeypatch.setattr(overview, "METRICS_NEWEST", 20)
    monkeypatch.setattr(overview, "METRICS_OLDER", 120)
    monkeypatch.setattr(overview, "METRICS_MOST", 180)
    random = np.random.default_rng(0)
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        looking = open_run(store.path)
        for record in make_records(400):
            values = {f"curve/{i}": random.normal() for i in range(5) if record.step % (i + 1) == 0}
            store.append(replace(record, metrics={**record.metrics, **values}))
            store.add_metrics(record.step, {"seconds/total": random.normal()})
            if record.step % looked_every == 0:
                kept = looking.overview("metrics")
                assert len(kept) <= 180
        store.add_metrics(3, {"late": 1.0})  # of a step that may be forgotten
        kept, whole = looking.overview("metrics"), looking.frame("metrics")
        assert "late" in kept
        whole_from = kept.attrs["whole_from"]
        assert 200 < whole_from <= 381
        inside = whole["step"].isin(kept["step"])
        assert_same(kept, whole[inside].reset_index(drop=True))
        assert set(whole["step"][whole["step"] >= whole_from]) <= set(kept["step"])
        older, also = whole[whole["step"] < whole_from], kept[kept["step"] < whole_from]
        assert len(also) < 0.6 * len(older)
        for name in whole:
            if not name.startswith("seconds/") and name != "late":
                assert np.float32(older[name].max()) == np.float32(also[name].max()), name
                assert np.float32(older[name].min()) == np.float32(also[name].min()), name
        per_stretch = np.histogram(also["step"], bins=5)[0]
        assert per_stretch.min() > 0.3 * per_stretch.max()  # early steps stay as dense as late ones
        store.rewind(100)
        again = looking.overview("metrics")
        assert_same(again, looking.frame("metrics"))
        assert again.attrs["whole_from"] == 0


EACH = {"gain": "estimator", "alignment": "part", "coordinator": "layer"}


def curves(name: str, rows: pd.DataFrame) -> dict[int, dict[str, float]]:
    """By step, what the figures draw of rows of one part, estimator or layer, in plain loops."""
    found: dict[int, dict[str, float]] = {}
    for step in sorted(set(rows["step"])):
        of_step = rows[rows["step"] == step].to_dict("records")
        if name == "gain":
            measured = [row["gain"] for row in of_step if row["gain"] == row["gain"]]
            found[step] = {"gain": sum(measured) / len(measured)} if measured else {}
        elif name == "coordinator":
            found[step] = {
                column: sum(row[column] for row in of_step) / len(of_step)
                for column in ("ratio", "effective_rank")
            }
        else:
            (whole,) = (row for row in of_step if row["layer"] == "all")
            layers = [row["conflict"] for row in of_step if row["layer"] != "all"]
            found[step] = {
                "cosine": whole["cosine"],
                "ratio": whole["first_norm"] / whole["second_norm"],
                "difference": whole["difference_norm"],
                "conflict": sum(layers) / len(layers),
            }
    return found


def test_of_a_long_run_stay_the_newest_steps_and_the_extremes_of_the_older(tmp_path, small):
    records = make_records(400)
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        looking = open_run(store.path)
        most: dict[str, int] = dict.fromkeys(EACH, 0)
        for record in records:
            store.append(record)
            if record.step % 7 == 0 or record.step == len(records):
                for name in EACH:
                    most[name] = max(most[name], len(looking.overview(name)))
        assert_same(looking.overview("metrics"), looking.frame("metrics"))
        assert_same(looking.overview("demonstrations"), looking.frame("demonstrations"))
        for name, each in EACH.items():
            whole, kept = looking.frame(name), looking.overview(name)
            # rows are those of whole steps, unchanged and in order
            pairs = set(zip(kept["step"], kept[each], strict=True))
            inside = [pair in pairs for pair in zip(whole["step"], whole[each], strict=True)]
            assert_same(kept, whole[inside].reset_index(drop=True))
            whole_from = kept.attrs["whole_from"]
            newest = whole[whole["step"] >= whole_from]
            assert_same(kept[kept["step"] >= whole_from].reset_index(drop=True),
                        newest.reset_index(drop=True))  # fmt: skip
            a_step = whole.groupby([each, "step"]).size().groupby(each).max()
            assert most[name] <= sum(a_step) * (overview.MOST + 7)
            assert len(kept) < len(whole) * 0.7
            for value, rows in whole.groupby(each):
                there = set(kept[kept[each] == value]["step"])
                steps = sorted(set(rows["step"]))
                assert len(there) <= overview.MOST + 7 and set(steps[-overview.NEWEST :]) <= there
                by_step = curves(name, rows)
                older = [step for step in steps if step < whole_from]
                for curve in by_step[steps[0]]:
                    known = [step for step in older if curve in by_step[step]]
                    for pick in (min, max):
                        extreme = pick(by_step[step][curve] for step in known)
                        assert any(by_step[s].get(curve) == extreme for s in there), (value, curve)


def test_early_steps_stay_as_dense_as_late_ones(tmp_path, small):
    """However often it was thinned: the stretches are of steps, not of what is left of them."""
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        looking = open_run(store.path)
        for record in make_records(600):
            store.append(record)
            if record.step % 20 == 0:
                kept = looking.overview("gain")
        kept = kept[(kept["estimator"] == "shared") & (kept["step"] < kept.attrs["whole_from"])]
        early = (kept["step"].unique() <= 270).sum()
        late = ((kept["step"].unique() > 270) & (kept["step"].unique() <= 540)).sum()
        assert early >= 8 and late >= 8 and abs(early - late) <= 8


def test_what_single_precision_does_not_hold_stays_finite(tmp_path):
    records = [replace(record, metrics={"kl": value}) for record, value in
               zip(make_records(4), (1e39, -1e300, np.inf, np.nan), strict=True)]  # fmt: skip
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for record in records:
            store.append(record)
        kl = open_run(store.path).overview("metrics")["kl"].to_numpy()
    assert kl.dtype == np.float32
    assert kl[0] == -kl[1] == np.finfo("float32").max and kl[2] == np.inf and np.isnan(kl[3])


def test_there_are_overviews_of_numbers_alone(tmp_path):
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for name in ("rollouts", "findings", "other"):
            with pytest.raises(RunFolderError, match=f"no overview of '{name}'; there are metrics"):
                open_run(store.path).overview(name)
