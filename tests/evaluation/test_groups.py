from dragoman.evaluation.groups import group_references
from dragoman.reading.pairs import Pair


def pair(source: str, target: str, *features: str, line: int = 1) -> Pair:
    return Pair(source=source, target=target, features=features, line=line, file="pairs.tsv")


def test_rows_of_one_source_become_one_group():
    groups = group_references(
        [
            pair("read", "r iy d", line=1),
            pair("lead", "l iy d", line=2),
            pair("read", "r eh d", line=3),
            pair("read", "r iy d", line=4),
        ]
    )
    assert [(one.source, one.references, one.line) for one in groups] == [
        ("read", ("r iy d", "r eh d"), 1),
        ("lead", ("l iy d",), 2),
    ]


def test_rows_with_other_features_stay_apart():
    groups = group_references(
        [pair("3/10/2024", "2024-03-10", "<en-US>"), pair("3/10/2024", "2024-10-03", "<en-GB>")]
    )
    assert [(one.features, one.references) for one in groups] == [
        (("<en-US>",), ("2024-03-10",)),
        (("<en-GB>",), ("2024-10-03",)),
    ]


def test_no_pairs_make_no_groups():
    assert group_references(iter([])) == []
