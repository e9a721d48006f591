import random
from dataclasses import replace

import numpy as np
import pytest

from dragoman.configuration import find_conflicts, merge_for_use, read_settings
from dragoman.presets import _SIZES, choose_settings, leave_room_for_outputs
from dragoman.reading.pairs import Pair
from dragoman.reading.statistics import collect_statistics
from dragoman.settings import Settings


def measure(*rows, times=1):
    return collect_statistics(
        Pair(source, target, (), i, "x") for i, (source, target) in enumerate(rows * times)
    )


PHONES = [("CAT", "K AE T"), ("DOG", "D AO G"), ("TACK", "T AE K"), ("GOD", "G AO D")]
WORDS = [("walk", "walked"), ("talk", "talked"), ("wend", "wended")]
SENTENCES = [
    (f"this is the running text number {i} of a small corpus", f"das ist der Satz Nummer {i} davon")
    for i in range(300)
]


def test_phones_are_symbols_and_words_are_characters():
    tokenizer = choose_settings(Settings(), measure(*PHONES, times=50)).settings.tokenizer
    assert (tokenizer.source.kind, tokenizer.target.kind) == ("characters", "symbols")
    assert not tokenizer.shared


def draw(inventory, count, seed):
    """Return words as frequent as in language: the k-th one 1/k as often as the first."""
    weights = [1 / rank for rank in range(1, len(inventory) + 1)]
    return random.Random(seed).choices(inventory, weights, k=count)


PHONE_INVENTORY = [f"{letter}{mark}" for mark in ("", "ː") for letter in "aeioutrsnlkdmpbgfvjzh"]
WORD_INVENTORY = [f"w{n}" for n in range(5000)]
RECORD = "company: {} {} | date: {} | total: {}"


@pytest.mark.parametrize("num_pairs", [50, 100, 300, 1000])
def test_the_kind_of_tokens_does_not_depend_on_the_number_of_pairs(num_pairs):
    def find(*rows):
        tokenizer = choose_settings(Settings(), measure(*rows)).settings.tokenizer
        return tokenizer.source.kind, tokenizer.target.kind

    phones = [draw(PHONE_INVENTORY, 6, seed) for seed in range(num_pairs)]
    texts = [draw(WORD_INVENTORY, 13, seed) for seed in range(num_pairs)]
    words = ["".join(letter[0] for letter in row) for row in phones]
    assert find(*((word, " ".join(row)) for word, row in zip(words, phones, strict=True))) == (
        "characters",
        "symbols",
    )
    sentences = [" ".join(row) for row in texts]
    assert find(*((text, f"das {text.upper()}") for text in sentences)) == ("bpe", "bpe")
    records = [(" ".join(row), RECORD.format(*row[3:7])) for row in texts]
    assert find(*records) == ("bpe", "bpe")
    repeated = [(text, text.replace("w", f"{n}x")) for text in sentences[:50] for n in range(8)]
    assert find(*repeated) == ("bpe", "bpe")
    nothing_copied = [(text, "mood: good | kind of text: long and dull") for text in sentences]
    assert find(*nothing_copied)[0] == "bpe"


def test_long_records_are_no_longer_than_the_tokens_allow():
    source = " ".join(f"word{n} |" for n in range(300))
    choice = choose_settings(
        Settings(), measure((source, '{"a": "word1", "b": "word2"}'), times=50)
    )
    assert choice.settings.data.max_tokens > len(source)
    typed = read_settings(None, ["--model.positions", "learned"])
    choice = choose_settings(typed, measure((source, '{"a": "word1", "b": "word2"}'), times=50))
    assert not find_conflicts(choice.settings)


def test_similar_words_share_one_vocabulary_and_one_matrix():
    settings = choose_settings(Settings(), measure(*WORDS, times=50)).settings
    assert settings.tokenizer.source.kind == settings.tokenizer.target.kind == "characters"
    assert settings.tokenizer.shared
    assert settings.model.tie_embeddings


def test_running_text_is_split_into_subwords():
    tokenizer = choose_settings(Settings(), measure(*SENTENCES)).settings.tokenizer
    assert tokenizer.source.kind == tokenizer.target.kind == "bpe"


def test_hangul_is_decomposed_but_few_accented_letters_are_not():
    hangul = [(chr(0xAC00 + 37 * n), f"c{n % 7}") for n in range(300)]
    choice = choose_settings(Settings(), measure(*hangul))
    assert choice.settings.tokenizer.source.unicode_form == "nfd"
    assert choice.settings.tokenizer.target.unicode_form == "none"
    assert any("Hangul as jamo" in reason for reason in choice.reasons)
    accented = choose_settings(Settings(), measure(("été", "e t e"), ("où", "u"), times=50))
    assert accented.settings.tokenizer.source.unicode_form == "none"


def test_letters_of_two_scripts_are_not_shared():
    rows = [("привет", "hello"), ("мир", "world")]
    assert not choose_settings(Settings(), measure(*rows, times=50)).settings.tokenizer.shared


def test_tags_at_the_start_of_every_source_are_features():
    assert choose_settings(Settings(), measure(("<V> <PST> go", "went"))).settings.data.leading_tags
    rows = [("<V> go", "went"), ("go", "went")]
    assert not choose_settings(Settings(), measure(*rows)).settings.data.leading_tags


@pytest.mark.parametrize(
    ("num_pairs", "size"),
    [(50, "tiny"), (2_000, "small"), (30_000, "medium"), (1_000_000, "large")],
)
def test_the_size_depends_on_the_number_of_pairs(num_pairs, size):
    rows = (Pair("a", "b", (), i, "x") for i in range(num_pairs))
    choice = choose_settings(Settings(), collect_statistics(rows))
    assert choice.settings.preset == size
    assert f"preset {size}" in choice.reasons[0]


@pytest.mark.parametrize(
    ("num_pairs", "steps"),
    [(29_999, 8000), (30_000, 8000), (240_000, 20_000), (999_999, 40_000), (1_000_000, 100_000)],
)
def test_steps_on_running_text_grow_with_the_pairs_without_a_jump(num_pairs, steps):
    sentence = "the quick brown fox jumps over the lazy dog in the park"
    statistics = replace(measure((sentence, sentence.upper())), num_pairs=num_pairs)
    assert choose_settings(Settings(), statistics).settings.training.max_steps == steps


def test_settings_of_the_user_stay():
    words = ["--preset", "large", "--model.d_model", "64", "--tokenizer.target.kind", "bpe"]
    settings = choose_settings(read_settings(None, words), measure(*WORDS, times=50)).settings
    assert settings.model.d_model == 64
    assert settings.model.num_encoder_layers == 6
    assert settings.tokenizer.target.kind == "bpe"
    assert settings.tokenizer.source.kind == "characters"
    assert not settings.tokenizer.shared


def test_quality_scales_the_steps_but_not_those_of_the_user():
    def choose(*words):
        return choose_settings(read_settings(None, words), measure(*WORDS, times=50)).settings

    steps = {
        name: choose("--quality", name).training.max_steps for name in ("quick", "normal", "best")
    }
    assert steps["quick"] == steps["normal"] // 8
    assert steps["best"] == steps["normal"] * 4
    assert choose("--quality", "best", "--training.max_steps", "60").training.max_steps == 60


def test_a_run_has_twenty_validations_so_that_patience_does_not_cut_its_first_half():
    for words in ([], ["--training.max_steps", "60"]):
        training = choose_settings(read_settings(None, words), measure(*WORDS)).settings.training
        assert training.max_steps / training.valid_every == pytest.approx(20, rel=0.01)
        assert training.patience * training.valid_every >= training.max_steps / 2


def test_short_sequences_of_letters_have_a_wide_model():
    letters = choose_settings(Settings(), measure(*WORDS, times=50)).settings.model
    text = choose_settings(Settings(), measure(*SENTENCES)).settings.model
    assert (letters.d_model, letters.num_decoder_layers) == (256, 4)
    assert (text.d_model, text.num_decoder_layers) == (128, 2)


@pytest.mark.parametrize("pairs", [WORDS, SENTENCES])
def test_positions_are_rotary_unless_there_is_one_layer(pairs):
    def choose(settings):
        return choose_settings(settings, measure(*pairs, times=50)).settings.model.positions

    assert choose(Settings()) == "rotary"
    assert choose(read_settings(None, ["--model.num_decoder_layers", "1"])) == "sinusoidal"


def inflect(words, features=("V", "PST")):
    return collect_statistics(
        Pair(word, f"{word}ed", features, i, "x") for i, word in enumerate(words)
    )


def test_inflection_of_few_words_has_hallucinated_stems():
    words = ["".join(draw("abcdefghij", 5, seed)) for seed in range(2100)]
    few = choose_settings(Settings(), inflect(words[:1000]))
    assert few.settings.optimization.hallucination == 0.6
    assert any("random letters" in reason for reason in few.reasons)
    many = choose_settings(Settings(), inflect(words))
    without_features = choose_settings(Settings(), inflect(words[:1000], ()))
    phones = [Pair(word, " ".join(word), ("de",), 1, "x") for word in words[:1000]]
    for choice in (many, without_features, choose_settings(Settings(), collect_statistics(phones))):
        assert choice.settings.optimization.hallucination == 0.0
    by_hand = read_settings(None, ["--optimization.hallucination", "0"])
    assert choose_settings(by_hand, inflect(words)).settings.optimization.hallucination == 0.0


def test_records_with_copied_values_have_the_model_of_letters_and_some_rows_a_batch():
    source = " ".join(f"word{n} |" for n in range(100))
    rows = [(source, "name: word1 word2 | total: word3")]
    settings = choose_settings(Settings(), measure(*rows, times=50)).settings
    assert (settings.model.positions, settings.model.num_encoder_layers) == ("rotary", 4)
    assert settings.training.batch_tokens >= 4 * 0.4 * len(source)  # subwords
    assert settings.tokenizer.pointers


@pytest.mark.parametrize("words", [["--tokenizer.target.vocab_size", "300"],
                                   ["--tokenizer.source.unicode_form", "nfc"]])  # fmt: skip
def test_pointers_stay_where_one_side_of_the_tokenizer_is_set(words):
    rows = [("total word1 of word2", "name: word1 | total: word2")]
    statistics = measure(*rows, times=50)
    tokenizer = choose_settings(read_settings(None, words), statistics).settings.tokenizer
    assert (tokenizer.pointers, tokenizer.source.kind) == (True, "bpe")
    assert tokenizer.source == tokenizer.target


def test_a_vocabulary_shared_by_the_user_makes_both_sides_equal():
    words = ["--tokenizer.shared", "true", "--tokenizer.target.unicode_form", "nfd"]
    tokenizer = choose_settings(
        read_settings(None, words), measure(*PHONES, times=50)
    ).settings.tokenizer
    assert tokenizer.shared
    assert tokenizer.source == tokenizer.target
    assert tokenizer.source.unicode_form == "nfd"


@pytest.mark.parametrize("size", _SIZES)
def test_no_preset_has_conflicting_settings(size):
    settings = choose_settings(Settings(preset=size), measure(*WORDS)).settings
    assert find_conflicts(settings) == []
    assert settings.optimization.warmup_steps < settings.training.max_steps


def test_the_validation_fraction_is_5_percent_or_about_2000_pairs():
    rows = (Pair("a", "b", (), i, "x") for i in range(100_000))
    assert (
        choose_settings(Settings(), collect_statistics(rows)).settings.data.valid_fraction == 0.02
    )
    assert choose_settings(Settings(), measure(*WORDS * 500)).settings.data.valid_fraction == 0.05
    assert choose_settings(Settings(), measure(*WORDS)).settings.data.valid_fraction == 0.2


def test_a_fraction_of_the_pairs_has_its_own_preset_and_the_same_held_out_ones():
    statistics = measure(*WORDS * 5000)
    whole = choose_settings(Settings(), statistics).settings
    few = read_settings(None, ["--data.train_fraction", "0.01"])
    part = choose_settings(few, statistics).settings
    assert part.data.valid_fraction == whole.data.valid_fraction
    assert (part.preset, whole.preset) == ("tiny", "small")


def test_reasons_are_given_for_choices_but_not_for_set_values():
    words = ["--tokenizer.source.kind", "bpe", "--data.leading_tags", "false", "--preset", "tiny"]
    reasons = choose_settings(read_settings(None, words), measure(("<V> go", "went"))).reasons
    assert not [
        why for why in reasons if "source tokens" in why or "<tag>" in why or "preset" in why
    ]


def test_a_shorter_run_still_reaches_the_peak_of_the_learning_rate():
    settings = choose_settings(read_settings(None, ["--training.max_steps", "40"]), measure(*WORDS))
    assert settings.settings.optimization.warmup_steps == 10


@pytest.mark.parametrize(
    ("rows", "words", "monitor"),
    [
        (PHONES, [], "token_error_rate"),
        (WORDS, [], "token_error_rate"),
        (WORDS, ["--tokenizer.target.kind", "bpe"], "character_error_rate"),
        (SENTENCES, [], "chrf"),
        (SENTENCES, ["--tokenizer.target.kind", "unigram"], "chrf"),
        (SENTENCES, ["--training.monitor", "auto"], "chrf"),
        (SENTENCES, ["--training.monitor", "exact_match"], "exact_match"),
    ],
)
def test_the_monitor_depends_on_the_targets(rows, words, monitor):
    times = 1 if rows is SENTENCES else 50
    choice = choose_settings(read_settings(None, words), measure(*rows, times=times))
    assert choice.settings.training.monitor == monitor
    message = [why for why in choice.reasons if why.startswith("best by ")]
    is_set = bool(words) and words[:2] == ["--training.monitor", "exact_match"]
    assert message == [] if is_set else message[0].startswith(f"best by {monitor}: ")


def test_a_typed_auto_is_resolved():
    settings = read_settings(None, ["--preset", "auto", "--training.monitor", "auto"])
    choice = choose_settings(settings, measure(*WORDS, times=50))
    assert choice.settings.preset == "tiny"
    assert any(why.startswith("preset tiny") for why in choice.reasons)


def lengths_of(*words, source=(900, 30), target=(114, 20)):
    """The limits of the outputs that `fit` chooses for pairs of these lengths; and its messages."""
    settings, messages = leave_room_for_outputs(
        read_settings(None, list(words)),
        np.array(source, np.int32),
        np.array(target, np.int32),
    )
    decoding = settings.decoding
    return decoding.max_length_extra, decoding.max_length, messages


def test_no_output_is_far_longer_than_the_training_targets():
    assert lengths_of() == (50, 2 * 113 + 50, [])
    extra, most, [message] = lengths_of(source=(5, 30), target=(114, 20))
    assert (extra, most) == (103, 2 * 113 + 103)
    assert "max_length_extra 103, for long targets" in message


def test_lengths_that_were_set_stay_and_a_message_says_what_they_lose():
    assert lengths_of("--decoding.max_length_ratio", "3") == (50, 0, [])
    assert lengths_of("--decoding.max_length_extra", "60") == (60, 0, [])
    extra, most, [message] = lengths_of("--decoding.max_length", "99")
    assert (extra, most) == (50, 99)
    assert "1 training targets are longer than decoding.max_length 99; 113 would" in message


def test_in_use_a_length_that_is_set_removes_the_bound_that_fit_chose():
    trained = read_settings(None, ["--decoding.max_length", "64"])
    for words, most in (
        ([], 64),
        (["--decoding.max_length_extra", "500"], 0),
        (["--decoding.max_length_extra", "500", "--decoding.max_length", "80"], 80),
    ):
        assert merge_for_use(read_settings(None, words), trained).decoding.max_length == most
