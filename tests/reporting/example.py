"""A rich and realistic content of a report: a speller of sounds, and what users' data may hold."""

import math
import random
from collections.abc import Callable
from typing import Any

from dragoman.commands.report import find_neighbours
from dragoman.configuration import flatten_settings
from dragoman.evaluation.breakdown import find_confusions
from dragoman.evaluation.output_rows import Row
from dragoman.reading.pairs import Pair
from dragoman.reporting.sections import ReportContent
from dragoman.settings import DataSettings, ModelSettings, Settings, TrainingSettings

_WORDS = """
through thought knight pneumonia colonel island receipt subtle doubt almond salmon yacht choir queue
rhythm hymn gnome sword answer muscle scissors autumn column ghost wrestle castle listen whistle
bouquet ballet buffet chalet depot debris corps rendezvous lieutenant sergeant bureau plateau château
naïve façade fiancée jalapeño smörgåsbord doppelgänger über zeitgeist schadenfreude kindergarten
banana tomato potato avocado asparagus broccoli cauliflower cucumber cinnamon coriander cardamom
""".split()  # noqa: SIM905
_SOUNDS = {
    "ch": "tʃ", "sh": "ʃ", "th": "θ", "ph": "f", "gh": "", "ck": "k", "qu": "k w", "ou": "aʊ",
    "ee": "iː", "ea": "iː", "a": "æ", "e": "ɛ", "i": "ɪ", "o": "ɒ", "u": "ʌ", "y": "i", "c": "k",
    "x": "k s", "j": "dʒ", "ï": "iː", "ç": "s", "é": "eɪ", "ñ": "n j", "ö": "ɜː", "å": "ɔː",
    "ä": "ɛ", "ü": "uː", "â": "æ",
}  # fmt: skip

HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\"><style>body { display: none }</style>",
    "\u202eright to left override\u202c and a bell \x07, NUL \x00, a C1 \x85",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; $\\alpha$ ]]> <!-- ",
    "שלום עולם, مرحبا بالعالم, 日本語のテキスト, 👩‍👩‍👧‍👦 e\u0301te\u0301",
    "tab\tline\nbreak\r\nand\u2028more\u00a0space  end ",
    "lone half \ud800 and \ufffe none",
    "x" * 20_000,
    "",
)


def make_rows(count: int, *, seed: int, skill: float = 0.9) -> list[Row]:
    """Rows of a model that is right about as often as `skill` says, and knows it fairly well."""
    chance = random.Random(seed)
    rows = []
    for line in range(1, count + 1):
        word = "".join(chance.sample(_WORDS, chance.choice((1, 1, 1, 2))))
        reference = _pronounce(word)
        is_right = chance.random() < skill ** (len(word) / 8)
        sure = chance.betavariate(9, 1.2) if is_right else chance.betavariate(2.6, 2.4)
        rows.append(
            Row(
                source=word,
                references=(reference, reference.replace("ɒ", "ɔ"))[: chance.choice((1, 1, 2))],
                hypothesis=reference if is_right else _distort(reference, chance),
                features=(chance.choice(("en-GB", "en-US", "en-AU")),),
                line=line,
                file="data/test.tsv",
                is_complete=is_right or chance.random() > 0.05,
                score=math.log(max(1e-9, sure)) * 1.6,
                confidence=round(sure, 4),
            )
        )
    return rows


def make_evaluation(rows: list[Row]) -> dict[str, Any]:
    """What `scores.json` holds of `rows`; intervals by the normal approximation."""
    right = 100 * sum(row.is_exact for row in rows) / len(rows)
    values = {
        "token_error_rate": (100 - right) * 0.31,
        "exact_match": right,
        "character_error_rate": (100 - right) * 0.24,
        "bleu": 100 - (100 - right) * 0.55,
        "chrf": 100 - (100 - right) * 0.4,
        "ter": (100 - right) * 0.37,
    }
    half = 196 * math.sqrt(right * (100 - right) / 1e4 / len(rows))
    scores = {
        "rows": len(rows),
        **values,
        "bleu_signature": "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
        "intervals": {
            name: [max(0, value - half * 0.9), min(100, value + half)]
            for name, value in values.items()
        },
        "titles": {"exact_match": "exact match", "token_error_rate": "PER"},
    }
    groups = {
        "source length": _group(rows, lambda row: "1-7" if len(row.source) < 8 else "8-34"),
        "feature": _group(rows, lambda row: row.features[0]),
        "rare symbols": _group(
            rows, lambda row: "10 to 99 times" if row.source.isascii() else "1 to 9 times"
        ),
    }
    return {
        "version": "0.1.0",
        "task": "phones",
        "rows": len(rows),
        "truncated": sum(not row.is_complete for row in rows),
        "data": {"files": ["data/test.tsv"]},
        "scores": scores,
        "breakdown": groups,
        "confusions": [one.to_dict() for one in find_confusions(rows, separator=" ", most=20)],
        "confidence": _calibrate(rows),
        "speed": {"rows_per_s": 1840.2, "seconds": len(rows) / 1840.2, "engine": "ctranslate2"},
    }  # fmt: skip


def make_inspection() -> dict[str, Any]:
    """What the data doctor says of data with a few faults."""
    lengths = {"min": 1, "p5": 3, "median": 8, "p95": 14, "p99": 17, "max": 34, "mean": 8.1}
    split = {
        name: {**lengths, "median": lengths["median"] + place, "p95": lengths["p95"] + 3 * place}
        for place, name in enumerate(
            ("source_characters", "target_characters", "source_tokens", "target_tokens")
        )
    }
    return {
        "splits": {
            "train": {"files": ["data/train.tsv"], "rows": 118_204, "sources": 109_870, **split},
            "valid": {"files": ["data/valid.tsv"], "rows": 6_201, "sources": 5_793, **split},
            "test": {"files": ["data/test.tsv"], "rows": 1_200, "sources": 1_200, **split},
        },
        "findings": [
            {
                "kind": "several targets", "severity": "note", "count": 8_334,
                "title": "One source with several targets",
                "told": "8,334 sources have more than one target: one output cannot match all of them.",
                "remedy": "Nothing, if several are right: they count as references. Else add a feature that tells them apart.",
                "examples": [
                    {"file": "data/train.tsv", "line": 118, "text": "abstract → ˈ æ b s t ɹ æ k t | æ b ˈ s t ɹ æ k t"},
                ],
            },
            {
                "kind": "leakage", "severity": "fault", "count": 611,
                "title": "The same source in train and test",
                "told": "611 of 1,200 test sources (50.9%) are among the training sources: the scores partly measure memory.",
                "remedy": "Take them out of the training pairs, or split again by source: leave data.test out and set data.test_fraction.",
                "examples": [
                    {"file": "data/test.tsv", "line": 3, "text": "knight"},
                    {"file": "data/test.tsv", "line": 8, "text": "pneumonia"},
                ],
            },
            {
                "kind": "encoding", "severity": "warning", "count": 17,
                "title": "Likely encoding faults",
                "told": "17 rows look like UTF-8 that was decoded as Latin-1.",
                "remedy": "Read the file again from its origin as UTF-8.",
                "examples": [{"file": "data/train.tsv", "line": 90_412, "text": "smÃ¶rgÃ¥sbord"}],
            },
        ],
        "preset": {"name": "small", "reasons": ["118,204 pairs", "targets of 9 tokens in the middle"]},
    }  # fmt: skip


def make_curves(steps: int = 20_000) -> dict[str, list[tuple[int, float]]]:
    """Curves of a training that goes well."""
    chance = random.Random(5)
    marks = range(500, steps + 1, 500)

    def decay(step: int, start: float, end: float, speed: float) -> float:
        return end + (start - end) * math.exp(-step / speed)

    return {
        "step_loss": [
            (step, decay(step, 4.1, 0.62, 1700) * math.exp(chance.gauss(0, 0.05)))
            for step in range(20, steps + 1, 20)
        ],
        "train_loss": [(step, decay(step, 4.0, 0.62, 1700)) for step in marks],
        "valid_loss": [(step, decay(step, 3.9, 0.71, 1600) + step * 2e-6) for step in marks],
        "learning_rate": [
            (step, 1e-3 * min(step / 1000, (steps - step) / (steps - 1000)))
            for step in range(20, steps + 1, 20)
        ],
        "tokens_per_s": [(step, 41_000 + chance.gauss(0, 900)) for step in range(20, steps + 1, 20)],
        "valid_exact_match": [(s, 92 - decay(s, 90, 0, 2600) + chance.gauss(0, 0.4)) for s in marks],
        "valid_token_error_rate": [(s, decay(s, 60, 2.2, 2400) + chance.gauss(0, 0.1)) for s in marks],
        "valid_character_error_rate": [(s, decay(s, 52, 1.7, 2400) + chance.gauss(0, 0.1)) for s in marks],
        "valid_chrf": [(s, 97 - decay(s, 80, 0, 2300) + chance.gauss(0, 0.2)) for s in marks],
    }  # fmt: skip


def make_attention() -> list[dict[str, Any]]:
    """Attention that runs along the diagonal, as it does in spelling."""
    found = []
    for word in ("knight", "pneumonia", "smörgåsbord"):
        source, output = list(word), [*_pronounce(word).split(), "</s>"]
        weights = []
        for y in range(len(output)):
            place = y * (len(source) - 1) / max(1, len(output) - 1)
            line = [math.exp(-((x - place) ** 2) / 0.8) + 0.01 for x in range(len(source))]
            weights.append([value / sum(line) for value in line])
        found.append(
            {"source": word, "source_tokens": source, "tokens": output, "weights": weights}
        )
    return found


def make_neighbours(rows: list[Row]) -> dict[str, Any]:
    """Training pairs of the words, and one that says otherwise than a wrong output."""
    wrong = max((row for row in rows if not row.is_exact), key=lambda row: row.confidence or 0.0)
    pairs = [(word, _pronounce(word)) for word in (*_WORDS, wrong.source.title())]
    return find_neighbours(rows, [Pair(*one, wrong.features, 9, "train.tsv") for one in pairs])


def make_content() -> ReportContent:
    """A report with every section."""
    valid, test = make_rows(2000, seed=1, skill=0.93), make_rows(1200, seed=2, skill=0.9)
    settings = Settings(
        version="0.1.0", preset="small", data=DataSettings(test=("data/test.tsv",)),
        training=TrainingSettings(max_steps=20_000, monitor="token_error_rate"),
        model=ModelSettings(d_model=320, dropout=0.2),
    )  # fmt: skip
    return ReportContent(
        name="models/english-sounds",
        summary="Task: phones (characters to symbols), 118,204 training pairs, 5,170,000 parameters.",
        created="2027-03-01 12:40 UTC",
        curves=make_curves(),
        inspection=make_inspection(),
        evaluations={"valid": make_evaluation(valid), "test": make_evaluation(test)},
        rows={"valid": valid, "test": test},
        attention=make_attention(),
        neighbours=make_neighbours(test),
        settings=flatten_settings(settings),
        user_settings={"data.test", "training.max_steps", "decoding.beam_size"},
        versions={"dragoman": "0.1.0", "Python": "3.11.7", "torch": "2.13.0", "sacrebleu": "2.6.0"},
        facts={
            "command": "dragoman fit data/train.tsv --data.test data/test.tsv --out models/english-sounds",
            "Training": "41 min 7 s, of which 3 min 12 s in validation",
            "Memory": "1.9 GiB at most",
            "Processor": "2 cores, 32-bit products",
        },
        hashes={
            "data/train.tsv": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "data/test.tsv": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
        },
    )


def make_hostile_content() -> ReportContent:
    """A report whose every text is hostile."""
    rows = [
        Row(
            source=text, references=(text + "a", "b"), hypothesis=text, features=(text[:60],),
            line=place, file=text[:50], confidence=0.5, score=-0.7,
        )
        for place, text in enumerate(HOSTILE)
    ]  # fmt: skip
    name = "".join(HOSTILE[:6])
    evaluation = make_evaluation(make_rows(200, seed=3))
    evaluation["scores"]["titles"] = dict.fromkeys(evaluation["scores"]["titles"], name)
    evaluation["breakdown"][name] = [
        {"group": text, "rows": 1, "exact_match": [50, 40, 60]} for text in HOSTILE
    ]
    evaluation["confusions"] = [
        {"from": text, "to": text[::-1], "count": 3,
         "examples": [{"source": text, "reference": text, "hypothesis": text[::-1]}]}
        for text in HOSTILE
    ]  # fmt: skip
    finding = {
        "kind": "x", "severity": "fault", "count": 1, "title": name, "told": name, "remedy": name,
        "examples": [{"file": text, "line": 1, "text": text} for text in HOSTILE],
    }  # fmt: skip
    return ReportContent(
        name=name,
        summary=name,
        created=name,
        curves={"valid_" + name: [(1, 2.0), (2, 3.0)], "valid_loss": [(1, math.nan)]},
        inspection={"splits": {name: {"files": [name], "rows": 1}}, "findings": [finding],
                    "preset": {"name": name, "reasons": [name]}},
        evaluations={name: evaluation, "test": evaluation},
        rows={name: rows},
        attention=[{"source": name, "source_tokens": list(HOSTILE), "tokens": list(HOSTILE),
                    "weights": [[1 / len(HOSTILE)] * len(HOSTILE)] * len(HOSTILE)}],
        neighbours=find_neighbours(rows, [Pair(row.source, name, row.features, 1, name) for row in rows]),
        settings={name: name, "data." + name: [name]},
        versions={name: name},
        facts={name: name},
        hashes={name: name},
    )  # fmt: skip


def _pronounce(word: str) -> str:
    sounds, place = [], 0
    while place < len(word):
        two = word[place : place + 2]
        taken = two if two in _SOUNDS else word[place]
        sounds.append(_SOUNDS.get(taken, taken))
        place += len(taken)
    return " ".join(sound for sound in sounds if sound)


def _distort(text: str, chance: random.Random) -> str:
    tokens = text.split()
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(tokens))
        turn = chance.random()
        if turn < 0.6:
            tokens[place] = {"æ": "eɪ", "ɒ": "əʊ", "ɪ": "aɪ", "k": "s"}.get(tokens[place], "ə")
        elif turn < 0.8 and len(tokens) > 1:
            del tokens[place]
        else:
            tokens.insert(place, "ə")
    return " ".join(tokens)


def _group(rows: list[Row], name: Callable[[Row], str]) -> list[dict[str, Any]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return [
        {
            "group": title,
            "rows": len(part),
            "exact_match": _estimate(100 * sum(row.is_exact for row in part) / len(part), part),
            "token_error_rate": _estimate(
                30 * sum(not row.is_exact for row in part) / len(part), part
            ),
        }
        for title, part in sorted(groups.items())
    ]


def _estimate(value: float, rows: list[Row]) -> list[float]:
    half = 1.96 * math.sqrt(max(1, value * (100 - value)) / len(rows))
    return [value, max(0.0, value - half), min(100.0, value + half)]


def _calibrate(rows: list[Row]) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: -(row.confidence or 0))
    bins, before = [], []
    for number in range(10):
        part = ordered[number * len(rows) // 10 : (number + 1) * len(rows) // 10]
        sure = sum(row.confidence or 0 for row in part) / len(part)
        right = sum(row.is_exact for row in part) / len(part)
        bins.append([sure, right, len(part)])
        before.append([sure**2.1, right, len(part)])
    curve, wrong = [], 0
    for count, row in enumerate(ordered, start=1):
        wrong += not row.is_exact
        if count % max(1, len(rows) // 100) == 0:
            curve.append([count / len(rows), wrong / count, row.confidence])
    thresholds = []
    for precision in (0.99, 0.98, 0.95):
        kept = [point for point in curve if point[1] <= 1 - precision]
        if kept:
            coverage, risk, threshold = kept[-1]
            thresholds.append({"precision": precision, "coverage": coverage, "exact": 1 - risk,
                               "threshold": threshold})  # fmt: skip
    return {
        "temperature": 0.48,
        "calibration_error": 0.021,
        "uncalibrated_error": 0.187,
        "bins": bins,
        "uncalibrated_bins": before,
        "curve": curve,
        "thresholds": thresholds,
    }
