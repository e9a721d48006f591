"""Searches of untrained models under every kind of constraint, with every kind of tokens."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.decoding.search import score_targets, search
from dragoman.decoding.search_config import SearchConfig, resolve_search
from dragoman.settings import DecodingSettings
from networks import join, make_network, make_sources
from vocabularies import KINDS, make_tokenizer

REGEX = r"[0-9]{2} ?- ?[0-9]{2}|(ja|nein)!?"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["ada", "bob"]},
        "age": {"enum": [36, 90]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMAR = """
start: "(" start ")" | NUMBER "+" NUMBER
NUMBER: /[0-9]{1,3}/
%ignore / /
"""
CHOICES = ["yes", "yes no", "no", "maybe yes", "12", "no no no", "yes no maybe"]


def matches_schema(text):
    value = json.loads(text)
    return (
        set(value) in ({"name", "age"}, {"name", "age", "tags"})
        and value["name"] in ("ada", "bob")
        and value["age"] in (36, 90)
        and len(value.get("tags", [0])) in (1, 2)
        and all(isinstance(tag, bool) for tag in value.get("tags", []))
    )


def is_sum_in_parentheses(text):
    text = text.replace(" ", "")  # that a number is not cut by a blank, the next line checks
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return re.fullmatch(r"[0-9]{1,3}\+[0-9]{1,3}", text) is not None


CHECKS = {
    "regex": lambda text: re.fullmatch(REGEX, text) is not None,
    "json_schema": matches_schema,
    "grammar": lambda text: is_sum_in_parentheses(text) and not re.search(r"\d +\d", text),
    "choices": CHOICES.__contains__,
}
METHODS = {
    "greedy": {},
    "beam": {"beam_size": 4, "num_hypotheses": 4},
    "diverse": {"method": "diverse", "beam_size": 4, "num_hypotheses": 4},
    "sampling": {"method": "sampling", "num_samples": 4, "num_hypotheses": 4},
}


@pytest.fixture(scope="module")
def constraints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("constraints")
    (folder / "g.lark").write_text(GRAMMAR)
    (folder / "c.txt").write_text("\n".join(CHOICES))
    return {
        "regex": {"regex": REGEX},
        "json_schema": {"json_schema": json.dumps(SCHEMA)},
        "grammar": {"grammar": str(folder / "g.lark")},
        "choices": {"choices": str(folder / "c.txt")},
    }


def config_of(tokenizer, limit=70, **values):
    decoding = DecodingSettings(max_length_ratio=0.0, max_length_extra=limit, **values)
    return resolve_search(decoding, tokenizer)


def no_token_left(config, ids):
    """Whether the vocabulary cannot spell what has to follow."""
    state = config.constraint
    for token in ids:
        assert state.allowed()[token]
        state = state.advance(token)
    return not state.allowed().any()


def networks_of(tokenizer, *seeds):
    return [make_network(seed, vocab_size=tokenizer.target_vocab_size) for seed in seeds]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", KINDS)
def test_complete_outputs_match(kind, name, method, constraints):
    tokenizer, num_complete = make_tokenizer(kind), 0
    limit = (
        240 if name == "json_schema" else 70
    )  # an untrained model takes all the whitespace it may
    config = config_of(tokenizer, limit, **constraints[name], **METHODS[method])
    for seeds in [(0,), (1, 2)]:  # one model, and an ensemble
        sources = join(make_sources([3, 7, 5], seeds[0]))
        for found in search(networks_of(tokenizer, *seeds), sources, config):
            assert 1 <= len(found) <= config.decoding.num_hypotheses
            for hypothesis in found:
                text = tokenizer.decode_target(hypothesis.ids)
                if hypothesis.is_complete:
                    assert CHECKS[name](text), text
                    num_complete += 1
                else:
                    assert len(hypothesis.ids) == limit or no_token_left(config, hypothesis.ids), (
                        text
                    )
            if method != "sampling":
                order = [h.is_complete for h in found]
                assert order == sorted(order, reverse=True)
    assert num_complete >= 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHECKS)
def test_outputs_too_short_for_a_match_are_incomplete(name, method, constraints):
    tokenizer = make_tokenizer("characters")
    limit = {"json_schema": 23, "grammar": 3, "regex": 2, "choices": 2}[name]  # and the end
    config = config_of(tokenizer, limit, **constraints[name], **METHODS[method])
    for found in search(networks_of(tokenizer, 4), join(make_sources([3, 7], 4)), config):
        assert not any(h.is_complete for h in found)


@pytest.mark.parametrize("kind", ["characters", "symbols", "regex"])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_constraint_that_allows_everything_changes_nothing(kind, method):
    tokenizer, num_compared = make_tokenizer(kind), 0
    config = config_of(tokenizer, 30, regex="(?s:.*)", **METHODS[method])
    free = SearchConfig(decoding=config.decoding, forbidden_ids=(3,))  # the unknown has no text
    config = SearchConfig(
        decoding=config.decoding, forbidden_ids=(3,), constraint=config.constraint
    )
    for seed in range(6):
        networks, sources = networks_of(tokenizer, seed), join(make_sources([3, 7, 5, 2], seed))
        torch.nn.init.constant_(networks[0].output.bias[2:3], 6.0)  # ends come
        for one, other in zip(
            search(networks, sources, free), search(networks, sources, config), strict=True
        ):
            if method == "greedy" or all(h.is_complete for h in one):
                num_compared += 1
                assert [(h.ids, h.is_complete) for h in one] == [
                    (h.ids, h.is_complete) for h in other
                ]
                assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)
    assert num_compared >= 8


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    extra=st.integers(0, 4),
    seed=st.integers(0, 9),
    method=st.sampled_from(list(METHODS)),
    kind=st.sampled_from(KINDS),
)
def test_a_list_depends_on_its_source_alone(name, lengths, extra, seed, method, kind, constraints):
    tokenizer, sources = make_tokenizer(kind), make_sources(lengths, seed)
    networks = networks_of(tokenizer, seed)
    config = config_of(tokenizer, 40, **constraints[name], **METHODS[method])
    for found, source in zip(search(networks, join(sources, extra), config), sources, strict=True):
        [alone] = search(networks, source, config)
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-3)


@pytest.mark.parametrize("stop", ["full", "exact"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_as_wide_as_the_list_ranks_it_by_its_scores(kind, penalty, stop, tmp_path):
    words = ["yes", "no", "maybe", "yes no", "no no", "no maybe", "12", "90", "ja", "yes no yes no"]
    path = tmp_path / "c.txt"
    path.write_text("\n".join(words))
    tokenizer = make_tokenizer(kind)
    encoded = [ids[1:-1] for ids in tokenizer.encode_targets(words)]
    config = config_of(
        tokenizer, beam_size=10, num_hypotheses=10, length_penalty=penalty, stop=stop,
        choices=str(path),
    )  # fmt: skip
    for seed in range(4):
        networks, sources = networks_of(tokenizer, seed), make_sources([3, 6], seed)
        for found, source in zip(search(networks, join(sources), config), sources, strict=True):
            scored = score_targets(
                networks, source.expand(len(words), -1), encoded, config.decoding
            )
            best_first = sorted(scored, key=lambda h: h.normalized_score, reverse=True)
            assert all(h.is_complete for h in found)
            if penalty == 0.0 and stop == "full":  # CTranslate2's rule may end before the last
                best_first = best_first[:1]
            assert [h.ids for h in found[: len(best_first)]] == [h.ids for h in best_first]
            for one, other in zip(found, best_first, strict=False):
                assert one.score == pytest.approx(other.score, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["bpe", "characters", "symbols"])
def test_a_prefix_and_a_constraint_hold_together(kind, method, constraints):
    tokenizer, sources = make_tokenizer(kind), join(make_sources([3, 7, 5], 1))
    networks = networks_of(tokenizer, 1)
    prefixes = [tokenizer.target.encode(text) for text in ["no no", "abc", "yes"]]
    config = config_of(tokenizer, 40, **constraints["choices"], **METHODS[method])
    first, unmatched, second = search(networks, sources, config, prefixes)
    assert all(h.is_complete for h in [*first, *second])
    assert {tokenizer.decode_target(h.ids) for h in first} == {"no no no"}
    texts = {tokenizer.decode_target(h.ids) for h in second}
    assert texts <= {"yes", "yes no", "yes no maybe"}
    assert not any(h.is_complete for h in unmatched)  # no choice begins with it


def test_an_end_of_a_single_hypothesis_is_not_lost():
    """ "a" can only end, which the model believes in least; "b" never ends."""
    tokenizer = make_tokenizer("characters")
    config = config_of(tokenizer, 12, regex="a|b[bc]{20}", beam_size=2, num_hypotheses=2)
    for seed in range(8):
        [network] = networks_of(tokenizer, seed)
        with torch.no_grad():
            network.output.bias[2] = -30.0
        [best, *others] = search([network], make_sources([4], seed)[0], config)[0]
        assert tokenizer.decode_target(best.ids) == "a"
        assert best.is_complete
        assert not any(h.is_complete for h in others)


def test_the_rules_and_a_constraint_hold_together(constraints):
    tokenizer = make_tokenizer("characters")
    networks, sources = networks_of(tokenizer, 2), join(make_sources([3, 7], 2))
    longer = config_of(
        tokenizer, beam_size=4, num_hypotheses=4, min_length=8, **constraints["choices"]
    )
    for found in search(networks, sources, longer):
        texts = {tokenizer.decode_target(h.ids) for h in found if h.is_complete}
        assert texts == {"maybe yes", "no no no", "yes no maybe"}
    without = config_of(tokenizer, forbidden_tokens="m,o", **constraints["choices"])
    for [best] in search(networks, sources, without):
        assert tokenizer.decode_target(best.ids) in ("yes", "12") or not best.is_complete
