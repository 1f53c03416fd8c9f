from workbench.tasks.overlap import overlaps

TRAIN = {
    "a": "Tom has 3 apples and buys 4 more, how many does he have now?",
    "b": "What is 12+7-30?",
    "c": "short",
}


def test_equal_texts_are_found_whatever_their_case_and_spaces() -> None:
    (found,) = overlaps(TRAIN, {"v": "what is  12 + 7 - 30 ?", "w": "What is 12+7-31?"})
    assert (found.held_out, found.train, found.kind, found.share) == ("v", "b", "exact", 1.0)


def test_the_share_of_common_runs_of_words() -> None:
    held_out = {"v": "Ann has 3 apples and buys 4 more, how many pears?"}
    words = [
        "ann",
        "has",
        "3",
        "apples",
        "and",
        "buys",
        "4",
        "more",
        ",",
        "how",
        "many",
        "pears",
        "?",
    ]
    n = 5
    known = "tom has 3 apples and buys 4 more , how many does he have now ?".split()
    runs = [words[i : i + n] for i in range(len(words) - n + 1)]
    common = [r for r in runs if any(known[i : i + n] == r for i in range(len(known)))]
    (found,) = overlaps(TRAIN, held_out, n=n)
    assert (found.train, found.kind) == ("a", "n-gram")
    assert found.share == len(common) / len(runs)
    assert overlaps(TRAIN, held_out, n=n, least=found.share + 0.01) == []


def test_texts_too_short_for_a_run_are_compared_as_a_whole() -> None:
    assert overlaps(TRAIN, {"v": "short one"}, n=8) == []
    assert [o.kind for o in overlaps(TRAIN, {"v": "Short"}, n=8)] == ["exact"]
