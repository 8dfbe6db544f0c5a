"""The audit finds what is planted in a pool, says what it saw, and finds nothing in a clean one."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.curation import suspicious
from retriever.curation.audit import KINDS, Audit, AuditSettings, Finding, audit
from retriever.errors import InvalidInput
from retriever.example import Example
from tests.support import build

TOPICS = {
    "weather": "rain snow wind fog hail storm sun frost cloud thunder breeze drizzle",
    "music": "violin drum flute guitar piano trumpet cello harp banjo organ tuba oboe",
    "food": "bread cheese apple soup honey pasta salad olive butter pepper onion rice",
}
CLEAN = [
    Example(f"{topic}-{place}", f"{word} {topic} {topic} {topic} number {word}", topic, label=topic)
    for topic, words in TOPICS.items()
    for place, word in enumerate(words.split())
]


def pool(examples, path, **options):
    output = "output" if any(example.output for example in examples) else None
    return build(examples, path / "index", output=output, weight=0.5, **options)


def found(examples, path, queries=(), **settings):
    with pool(examples, path) as retriever:
        return audit(retriever._live.snapshot, queries, AuditSettings(**settings))


def of_kind(result, kind):
    return [finding for finding in result if finding.kind == kind]


def by_topic(texts):
    """An embedder by which a text is its first topic's direction, a little turned by its length."""
    vectors = np.zeros((len(texts), len(TOPICS) + 2), dtype=np.float32)
    for row, text in enumerate(texts):
        named = [place for place, topic in enumerate(TOPICS) if topic in text]
        vectors[row, named[0] if named else len(TOPICS)] = 1.0
        vectors[row, -1] = 0.01 * (len(text) % 7)
    return vectors


def test_a_clean_pool_has_no_findings(tmp_path):
    result = found(CLEAN, tmp_path, [Example("q", "does it rain tomorrow")])
    assert result == Audit(36, 1, (), dict.fromkeys(KINDS, 0))


@pytest.mark.parametrize("examples", [[], [Example("a", "alone", "x", label="x")]], ids=["empty", "one"])
def test_a_pool_of_no_or_one_example_has_no_findings(tmp_path, examples):
    with pool([*examples, Example("gone", "gone", "x")], tmp_path) as retriever:
        retriever.remove(["gone"])
        result = audit(retriever._live.snapshot, [Example("q", "alone together")])
    assert result == Audit(len(examples), 1, (), dict.fromkeys(KINDS, 0))


def test_one_input_with_two_labels_is_a_conflict_and_not_told_again_as_copies(tmp_path):
    planted = [Example("a", "Is it open?", "yes", label="yes"), Example("b", "is it OPEN", "no", label="no")]
    reason = (
        "2 examples have the same input but for case, punctuation or white space and 2 different labels: "
        '"yes" (1), "no" (1)'
    )
    assert found([*CLEAN, *planted], tmp_path).findings == (Finding("conflict", ("a", "b"), reason),)


def test_of_a_clear_majority_the_odd_one_is_named(tmp_path):
    planted = [Example(f"e{place}", "2 plus 2", "5" if place == 2 else "4") for place in range(4)]
    (finding,) = found(planted, tmp_path)
    assert finding.ids == ("e0", "e1", "e2", "e3")
    assert finding.reason == (
        '4 examples have the same input and 2 different outputs: "4" (3), "5" (1); the odd one is e2'
    )


def test_two_against_one_is_no_clear_majority(tmp_path):
    (finding,) = found([Example(f"e{place}", "2 plus 2", "5" if place else "4") for place in range(3)], tmp_path)
    assert finding.reason.endswith('outputs: "5" (2), "4" (1)')


def test_of_many_answers_the_most_frequent_are_listed(tmp_path):
    outputs = ["b", "a", "c", "d", "e", "f", "g", "c"]
    (finding,) = found([Example(f"e{place}", "any", output) for place, output in enumerate(outputs)], tmp_path)
    assert finding.reason == (
        '8 examples have the same input and 7 different outputs: "c" (2), "b" (1), "a" (1), "d" (1), "e" (1) and 2 more'
    )


def test_long_outputs_are_shown_where_they_differ(tmp_path):
    same = "SELECT name FROM city WHERE " * 5
    (finding,) = found([Example("a", "who", f"{same}x = 1"), Example("b", "who", f"{same}y = 2")], tmp_path)
    assert finding.reason.endswith('2 different outputs: "…ity WHERE x = 1" (1), "…ity WHERE y = 2" (1)')


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Example("a", "3 + 5", "8"), Example("b", "3 - 5", "-2")),
        (Example("a", "कि", "that"), Example("b", "की", "of")),
        (Example("a", ":)", "glad"), Example("b", ":(", "sad")),
        (Example("a", "who", "me  and you"), Example("b", "who", "me and\nyou")),
        (Example("a", "who", {"x": 1, "y": 2}), Example("b", "who", {"y": 2, "x": 1})),
        (Example("a", "who", "me"), Example("b", "who", " ")),
        (Example("a", "who", label=["x", "y"]), Example("b", "who", label=["y", "x"])),
    ],
    ids=["sign", "vowel", "punctuation", "white space", "order of keys", "none given", "order of labels"],
)
def test_what_says_something_else_or_the_same_is_no_conflict(tmp_path, first, second):
    assert of_kind(found([first, second], tmp_path), "conflict") == []


def test_copies_are_told_with_their_likeness_and_whether_their_outputs_agree(tmp_path):
    # 5 and 5 four-grams, 3 shared: 3 / 7.
    planted = [
        Example("a", "abcdef", "1"),
        Example("b", "card lost", "2"),
        Example("c", "abcdeg", "1"),
        Example("d", "lost card", "3"),
        Example("e", "pin", "4"),
        Example("f", "pin", "4"),
        Example("g", "PIN!", "4"),
    ]
    assert of_kind(found(planted, tmp_path, threshold=3 / 7), "copies") == [
        Finding(
            "copies", ("a", "c"), "2 examples have nearly the same input (likeness 0.43 or more) and the same output"
        ),
        Finding("copies", ("b", "d"), "2 examples have the same words in another order and 2 different outputs"),
        Finding(
            "copies",
            ("e", "f", "g"),
            "3 examples have the same input but for case, punctuation or white space and the same output",
        ),
    ]
    assert [one.ids for one in of_kind(found(planted, tmp_path / "higher", threshold=0.5), "copies")] == [
        ("b", "d"),
        ("e", "f", "g"),
    ]


def test_copies_in_a_pool_without_outputs_say_nothing_of_them(tmp_path):
    (finding,) = found([Example("a", "pin"), Example("b", "pin")], tmp_path)
    assert finding.reason == "2 examples have the same input"


def test_a_query_leaks_by_its_input_by_a_near_copy_of_it_or_by_its_id(tmp_path):
    examples = [
        Example("p0", "how do I change my PIN"),
        Example("p1", "how do I change my PIN?"),
        Example("p2", "how do I change my PINs"),
        Example("p3", "where is my card"),
        Example("q1", "something else"),
    ]
    queries = [
        Example("q0", "How do I change my PIN?"),
        Example("q1", "is my card where"),
        Example("q2", "what is this"),
        Example("q3", "how do I change my PIN"),
    ]
    # " how do i change my pin " has 21 four-grams, with an s 22; 20 are shared: 20 / 23.
    leaks = of_kind(found(examples, tmp_path, queries, threshold=0.86), "leak")
    assert leaks == [
        Finding(
            "leak",
            ("p0", "p1", "p2"),
            "the query is in the pool: 2 with the same input but for case, punctuation or white space, "
            "1 with nearly the same input (likeness up to 0.87)",
            "q0",
        ),
        Finding(
            "leak",
            ("p0", "p1", "p2"),
            "the query is in the pool: 1 with the same input, 1 with the same input but for case, punctuation or white "
            "space, 1 with nearly the same input (likeness up to 0.87)",
            "q3",
        ),
        Finding(
            "leak",
            ("p3", "q1"),
            "the query is in the pool: 1 with the same words in another order, 1 with the query's own id",
            "q1",
        ),
    ]


def test_an_example_among_others_of_one_label_is_an_outlier(tmp_path):
    planted = Example("odd", "strings in the music hall", "food", label="food")
    with pool([*CLEAN, planted], tmp_path, embedder=by_topic) as retriever:
        (finding,) = audit(retriever._live.snapshot, settings=AuditSettings(neighbours=10))
        assert finding.kind == "outlier-label" and finding.ids == ("odd",)
        assert 'all have "music", it has "food"; the nearest is music-' in finding.reason
        assert finding.reason.startswith("its 10 nearest (cosine 1.00 to 1.00)")
        # Of 12 others with the label all are near; the 13th neighbour is not.
        assert audit(retriever._live.snapshot, settings=AuditSettings(neighbours=13)).findings == ()


@pytest.mark.parametrize("neighbours", [3, 4, 5])
def test_label_outliers_are_those_of_a_search_through_all_pairs(tmp_path, neighbours):
    rng = np.random.default_rng(neighbours)
    labels = rng.integers(0, 6, 60)
    directions = (np.eye(6)[labels] + 0.25 * rng.normal(size=(60, 6))).astype(np.float32)
    given = np.where(rng.random(60) < 0.15, (labels + 1) % 6, labels)
    texts = [f"text {place} {'x' * place}" for place in range(60)]

    def embedder(asked):
        return np.stack([directions[texts.index(text)] if text in texts else np.ones(6, np.float32) for text in asked])

    examples = [Example(f"e{place}", text, label=f"l{given[place]}") for place, text in enumerate(texts)]
    unit = directions.astype(np.float64) / np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = unit @ unit.T
    expected = []
    for row in range(60):
        nearest = sorted(set(range(60)) - {row}, key=lambda other: -cosines[row, other])[:neighbours]
        first, *others = given[nearest]
        # A label so frequent that as many random examples would all have it in one case of a hundred says nothing.
        rare = np.mean(given == first) ** neighbours <= 0.01
        if rare and first != given[row] and all(other == first for other in others):
            expected.append((f"e{row}",))
    with pool(examples, tmp_path, embedder=embedder) as retriever:
        result = audit(retriever._live.snapshot, settings=AuditSettings(threshold=1.0, neighbours=neighbours))
    assert [one.ids for one in of_kind(result, "outlier-label")] == expected
    assert expected


def test_without_labels_short_outputs_are_compared(tmp_path):
    examples = [replace(one, label=None) for one in CLEAN]
    planted = Example("odd", "strings in the music hall", "food")
    with pool([*examples, planted], tmp_path, embedder=by_topic) as retriever:
        assert [one.ids for one in audit(retriever._live.snapshot)] == [("odd",)]


def test_a_label_that_shares_one_with_its_neighbours_is_no_outlier(tmp_path):
    planted = Example("both", "strings in the music hall", "x", label=["music", "food"])
    with pool([*CLEAN, planted], tmp_path, embedder=by_topic) as retriever:
        assert audit(retriever._live.snapshot).findings == ()


def test_a_label_that_nearly_all_have_says_nothing_about_the_one_that_has_another(tmp_path):
    examples = [Example(f"e{place}", f"music {'x' * place}", label="music") for place in range(20)]
    odd = Example("odd", "music odd", label="food")
    with pool([*examples, odd], tmp_path, embedder=by_topic) as retriever:
        assert audit(retriever._live.snapshot, settings=AuditSettings(threshold=1.0)).counts["outlier-label"] == 0


@pytest.mark.parametrize(("count", "ids"), [(49, [("far",)]), (48, [])])
def test_an_example_far_from_all_others_is_an_outlier_in_a_pool_of_50(tmp_path, count, ids):
    def embedder(texts):
        angles = [float(text.split()[-1]) if text[-1].isdigit() and "." in text else 0.0 for text in texts]
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)

    examples = [Example(f"e{place}", f"{place * 'x'} {place / 100:.2f}") for place in range(1, count + 1)]
    far = Example("far", "opposite 3.0")
    with pool([*examples, far], tmp_path, embedder=embedder) as retriever:
        outliers = of_kind(audit(retriever._live.snapshot), "outlier-far")
    assert [one.ids for one in outliers] == ids
    # The nearest is at 0.49: cos(3 − 0.49) = −0.81. All others have a nearest at 0.01.
    expected = "its nearest, e49, has cosine -0.81; the median of the pool is 1.00"
    assert all(one.reason == expected for one in outliers)


def test_removed_examples_are_not_looked_at_and_added_ones_are(tmp_path):
    planted = [Example("a", "is it open", "yes"), Example("b", "is it open", "no"), Example("c", "is it open", "no")]
    with pool([*CLEAN, *planted[:2]], tmp_path) as retriever:
        retriever.remove(["a"])
        assert audit(retriever._live.snapshot).findings == ()
        retriever.add([planted[2]])
        (finding,) = audit(retriever._live.snapshot)
        assert (finding.kind, finding.ids) == ("copies", ("b", "c"))


SUSPECTS = {
    "blank input": (Example("x", " \n"), "the input is blank"),
    "echo": (Example("x", "Hello ", "Hello"), "the output is the input"),
    "role marker": (
        Example("x", "hi", "<|im_start|>user"),
        "the output contains '<|im_start|>', which models or templates take for the start or end of a turn",
    ),
    "label of the template": (
        Example("x", "hi", "ho", rationale="so\nInput: hi"),
        "the rationale contains 'Input:', which models or templates take for the start or end of a turn",
    ),
    "control": (Example("x", "a\x07b\x00", "y"), "the input contains U+0000 (NUL), U+0007 (control character)"),
    "zero width": (Example("x", "a\u200bb", "y"), "the input contains U+200B (ZERO WIDTH SPACE)"),
    "joiner": (Example("x", "a\u200db", "y"), "the input contains U+200D (ZERO WIDTH JOINER)"),
    "override": (Example("x", "a", "\u202eb"), "the output contains U+202E (RIGHT-TO-LEFT OVERRIDE)"),
    "direction mark": (Example("x", "a\u200f", "y"), "the input contains U+200F (RIGHT-TO-LEFT MARK)"),
    "replacement": (Example("x", "caf\ufffd", "y"), "the input contains U+FFFD (REPLACEMENT CHARACTER)"),
    "surrogate": (Example("x", "a\ud800", "y"), "the input contains U+D800 (lone surrogate)"),
    "latin-1": (Example("x", "cafÃ©", "y"), "the input looks wrongly decoded: 'Ã©' for 'é'"),
    "windows-1252": (Example("x", "y", "donâ€™t"), "the output looks wrongly decoded: 'â€™' for '’'"),
}


@pytest.mark.parametrize("case", SUSPECTS)
def test_each_suspicion_says_what_it_saw(case):
    example, reason = SUSPECTS[case]
    said = [one for suspicion in suspicious.SUSPICIONS for one in suspicion(example)]
    assert [one for one in said if one != suspicious.BLANK_OUTPUT] == [reason]


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\r\nof two lines",
        "«CAFÉ» São Paulo, É»",
        "naïve café — “quoted” … €5",
        "می\u200cخواهم",
        "👩\u200d🚒 👨\u200d👩\u200d👧",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "שלום\u200f abc",
        "the Input: is not at the start of a line",
        "ÃO DE QUEIJO",
        "日本語のテキスト",
    ],
)
def test_ordinary_text_is_not_suspicious(text):
    assert [one for suspicion in suspicious.SUSPICIONS for one in suspicion(Example("x", text, "y"))] == []


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text.isascii()))
def test_text_that_was_read_as_latin_1_is_recognised(text):
    assert list(suspicious.undecoded(Example("x", text.encode().decode("latin-1"), "y")))


def test_examples_of_which_the_same_can_be_said_share_a_finding(tmp_path):
    examples = [
        *CLEAN[:10],
        Example("a", "one\u200b", "x"),
        Example("b", "two words\u200b", "x"),
        Example("c", "blank", ""),
    ]
    assert found(examples, tmp_path).findings == (
        Finding("suspicious", ("a", "b"), "the input contains U+200B (ZERO WIDTH SPACE)"),
        Finding("suspicious", ("c",), "the output is blank, and other examples have one"),
    )


def test_a_pool_without_outputs_has_no_blank_ones(tmp_path):
    assert found([Example("a", "one", ""), Example("b", "two words", "")], tmp_path).findings == ()


def test_a_text_of_another_length_than_all_others_is_suspicious(tmp_path):
    planted = Example("long", "word " * 200, "x", label="x")
    (finding,) = found([*CLEAN, planted], tmp_path)
    assert (finding.kind, finding.ids) == ("suspicious", ("long",))
    assert finding.reason.startswith("the input is very long: 999 characters, where the median is ")


def test_lengths_that_many_have_are_not_far_out():
    assert list(suspicious.far_lengths("input", [50] * 400 + [5000] * 3)) == []
    assert [place for place, _ in suspicious.far_lengths("input", [50] * 400 + [5000] * 2)] == [400, 401]
    assert [place for place, _ in suspicious.far_lengths("input", [0, 0, 900, *[900] * 9, 1])] == [12]
    assert list(suspicious.far_lengths("input", [0, 0])) == list(suspicious.far_lengths("input", [])) == []


def test_far_above_is_many_spreads_of_the_upper_half_above_the_median():
    # The median is 3; above it lie 0, 1, 2 and 97, whose median is 1.5: 3 + 5 · 1.4826 · 1.5 = 14.1.
    values = np.array([1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 100.0])
    assert suspicious.far_above(values, deviations=5.0, floor=0.1, share=0.5).tolist() == [6]
    assert suspicious.far_above(values, deviations=5.0, floor=20.0, share=0.5).tolist() == []
    values[6] = 14.0
    assert suspicious.far_above(values, deviations=5.0, floor=0.1, share=0.5).tolist() == []


def test_findings_are_ordered_counted_before_they_are_cut_and_the_same_every_time(tmp_path):
    planted = [
        Example("s", "sus\u200bpicious thing", "x"),
        Example("c0", "a copy of one", "y"),
        Example("c1", "a copy of one", "y"),
        Example("c2", "another thing twice", "y"),
        Example("c3", "another thing twice", "y"),
        Example("k0", "is it open", "yes"),
        Example("k1", "is it open", "no"),
    ]
    with pool(planted, tmp_path) as retriever:
        snapshot = retriever._live.snapshot
        every = audit(snapshot, [Example("q", "is it open")])
        assert every == audit(snapshot, [Example("q", "is it open")])
        assert [one.kind for one in every] == ["conflict", "copies", "copies", "leak", "suspicious"]
        assert [one.ids for one in every] == [("k0", "k1"), ("c0", "c1"), ("c2", "c3"), ("k0", "k1"), ("s",)]
        short = audit(snapshot, [Example("q", "is it open")], AuditSettings(most=1))
        assert [one.ids for one in short] == [("k0", "k1"), ("c0", "c1"), ("k0", "k1"), ("s",)]
        assert short.counts == every.counts
        assert every.counts == dict(zip(KINDS, [1, 2, 1, 0, 0, 1], strict=True))
        assert audit(snapshot, settings=AuditSettings(most=0)).findings == ()


def test_the_report_is_json(tmp_path):
    result = found([Example("a", "pin", "1"), Example("b", "pin", "2")], tmp_path, [Example("q", "pin")])
    report = json.loads(json.dumps(result.to_dict()))
    assert report["examples"] == 2 and report["queries"] == 1
    assert report["counts"] == {**dict.fromkeys(KINDS, 0), "conflict": 1, "leak": 1}
    assert report["findings"][1] == {
        "kind": "leak",
        "ids": ["a", "b"],
        "reason": "the query is in the pool: 2 with the same input",
        "query": "q",
    }


def test_progress_tells_each_stage_to_its_end(tmp_path):
    told = []
    with pool(CLEAN, tmp_path) as retriever:
        snapshot = retriever._live.snapshot
        audit(snapshot, [Example("q", "x")], progress=lambda stage, done, total: told.append((stage, done, total)))
    last = {stage: (done, total) for stage, done, total in told}
    assert last == {"reading": (36, 36), "neighbours": (36, 36), "copies": (36, 36), "leaks": (1, 1)}


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.0}, {"threshold": 1.5}, {"neighbours": 0}, {"most": -1}], ids=lambda one: str(one)
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(InvalidInput):
        AuditSettings(**settings)


@given(st.lists(st.tuples(st.sampled_from(["a", "A!", "b", "b ", "c"]), st.sampled_from(["1", "2", " 1"])), max_size=8))
def test_conflicts_are_the_groups_of_one_input_that_have_a_pair_of_different_outputs(tmp_path_factory, rows):
    rows = rows or [("a", "1")]
    examples = [Example(f"e{place}", text, output) for place, (text, output) in enumerate(rows)]
    folded = [(text.strip(" !").lower(), output.strip()) for text, output in rows]
    expected = {
        folded[i][0]
        for i, j in combinations(range(len(rows)), 2)
        if folded[i][0] == folded[j][0] and folded[i][1] != folded[j][1]
    }
    result = found(examples, tmp_path_factory.mktemp("pool"))
    members = [{folded[int(identity[1:])][0] for identity in one.ids} for one in of_kind(result, "conflict")]
    assert len(members) == len(expected) and set().union(*members) == expected
