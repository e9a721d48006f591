"""The server as its clients see it."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from libretranslatepy import LibreTranslateAPI

import dragoman
from conftest import make_words
from dragoman.cli import main
from dragoman.grounding import Span
from dragoman.model_folder.folder import ModelFolder, staged_model_folder
from dragoman.reading.pairs import read_pairs
from dragoman.serving.app import Corrections
from dragoman.serving.messages import (
    CorrectionRequest,
    PredictRequest,
    PredictResponse,
    RequestError,
    describe_outputs,
    encode_json,
)
from dragoman.serving.messages import Prediction as Answer
from dragoman.serving.served_models import ServedModels
from dragoman.settings import DataSettings
from serving.served import Client, running_server

OPTIONS = [
    {},
    {"decoding": {"beam_size": 4}},
    {"nbest": 3},
    {"decoding": {"beam_size": 2, "no_repeat_ngram": 2}},
    {"decoding": {"forbidden_tokens": ["A"]}},
]
AS_TYPED = [
    [],
    ["--decoding.beam_size", "4"],
    ["--decoding.beam_size", "3", "--decoding.num_hypotheses", "3"],
    ["--decoding.beam_size", "2", "--decoding.no_repeat_ngram", "2"],
    ["--decoding.forbidden_tokens", "A"],
]
FEATURES = Path(__file__).parents[1] / "folders" / "0.1" / "features"
GUIDED = {"decoding": {"regex": "[A-D]+"}}


def digest_of(folder):
    return ModelFolder.read(folder).weights.sha256


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """A server with every option, and the file of its corrections."""
    corrections = tmp_path_factory.mktemp("corrections") / "corrections.tsv"
    words = [f"caps={trained[0]}", "--corrections", corrections, "--libretranslate"]
    with running_server(*words) as (process, port):
        yield process, port, corrections


@pytest.fixture
def client(server):
    return Client(server[1])


def test_64_clients_with_mixed_options_get_what_predict_writes(trained, server, tmp_path):
    sources = make_words(64, seed=3)
    (tmp_path / "sources.txt").write_text("".join(f"{one}\n" for one in sources))
    expected = []
    for i, words in enumerate(AS_TYPED):
        out = tmp_path / f"{i}.jsonl"
        command = ["predict", str(trained[0]), "--input", str(tmp_path / "sources.txt")]
        assert main([*command, "--output", str(out), *words]) == 0
        expected.append([json.loads(line) for line in out.read_text().splitlines()])

    def ask(number):
        client, found = Client(server[1]), []
        for step in range(10):
            option, row = (number + step) % len(OPTIONS), (7 * number + step) % len(sources)
            count = 1 + (number + step) % 3  # a text, or several
            rows = [(row + i) % len(sources) for i in range(count)]
            texts = [sources[i] for i in rows]
            content = client.predict(texts if count > 1 else texts[0], **OPTIONS[option])
            found += zip(itertools.repeat(option), rows, content["predictions"], strict=False)
        return found

    with ThreadPoolExecutor(64) as threads:
        answers = list(itertools.chain(*threads.map(ask, range(64))))
    assert len(answers) == sum(1 + (n + s) % 3 for n in range(64) for s in range(10))
    for option, row, got in answers:
        wanted = expected[option][row]
        assert got["output"].encode() == wanted["text"].encode()
        assert got["confidence"] == pytest.approx(wanted["confidence"], abs=2e-4)
        assert got["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert got["truncated"] == (not wanted["is_complete"])
        if "nbest" in OPTIONS[option]:
            assert [one["output"] for one in got["nbest"]] == [
                one["text"] for one in wanted["hypotheses"]
            ]


def test_the_response_holds_what_was_asked_for(trained, client):
    content = client.predict("abc", min_confidence=0.5, nbest=2, model="caps")
    assert content["model"] == "caps"
    assert content["digest"] == digest_of(trained[0])
    [got] = content["predictions"]
    assert got["output"] == "ABC"
    assert not got["truncated"]
    assert not got["low_confidence"]
    assert got["nbest"][0]["output"] == "ABC"
    assert len(got["nbest"]) == 2
    assert PredictResponse.model_validate(content)
    [got] = client.predict(["abc"])["predictions"]
    assert set(got) == {"output", "confidence", "score", "truncated"}


def test_a_record_comes_with_its_fields_their_confidence_and_places(trained_on_records):
    model = dragoman.load(trained_on_records[0])
    words = [f"{word} EUR" for word in make_words(20, seed=5)]
    with running_server(trained_on_records[0]) as (_, port):
        content = Client(port).predict(words)
        schemas = Client(port).get("/openapi.json")["components"]["schemas"]
    assert PredictResponse.model_validate(content)
    for got, [best] in zip(content["predictions"], model.predict_n_best(words), strict=True):
        assert got["output"] == best.text
        assert got["record"] == best.record
        assert got["spans"] == [span._asdict() for span in best.spans]
        assert [{key: one[key] for key in Span._fields} for one in got["fields"]] == got["spans"]
        for one, field in zip(got["fields"], best.fields, strict=True):
            assert one["confidence"] == pytest.approx(field.confidence, abs=2e-4)
    kinds = {(one["field"], one["kind"]) for got in content["predictions"] for one in got["fields"]}
    assert {("currency", "exact"), ("sale", "none")} <= kinds
    assert {"record", "fields", "spans"} <= set(schemas["Prediction"]["properties"])
    assert {"value", "confidence", "start"} <= set(schemas["FieldValue"]["properties"])


def test_an_output_that_is_no_record_has_low_confidence_and_an_error(trained_on_records):
    [[best]] = dragoman.load(trained_on_records[0]).predict_n_best(["abc"])
    request = PredictRequest(source="abc", min_confidence=0.0)
    assert describe_outputs([best], request, "abc")["low_confidence"] is False
    broken = describe_outputs([replace(best, text="{", emitted="{", _fields=())], request, "abc")
    assert broken["low_confidence"] is True
    assert broken["error"] == "the output is not a JSON object"
    assert Answer.model_validate(broken).record is None


def test_the_text_that_places_are_in_is_given_where_its_tags_were_taken(trained_on_records):
    [[best]] = dragoman.load(trained_on_records[0]).predict_n_best(["abc"])
    texts = ["<de> abc", "abc"]
    found = [describe_outputs([best], PredictRequest(source=texts), text) for text in texts]
    assert [one.get("source") for one in found] == ["abc", None]


def test_half_a_surrogate_pair_of_a_record_is_json_again():
    assert encode_json({"é": "\ud800"}) == b'{"\xc3\xa9":"\\ud800"}'


def test_no_response_waits_for_a_delayed_acknowledgement(client):
    times = []
    for _ in range(20):
        start = time.perf_counter()
        client.predict("abc")
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < 0.03  # it would be 0.04 at the least


def test_no_torch_is_loaded_until_a_request_needs_it(server, client):
    maps = Path(f"/proc/{server[0].pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    client.predict("abc")
    assert "libtorch" not in maps.read_text()
    [got] = client.predict("abe", **GUIDED)["predictions"]
    assert set(got["output"]) <= set("ABCD")
    [got] = client.predict("abc", alignment=True)["predictions"]
    assert got["alignment"]["source_tokens"] == ["a", "b", "c", "</s>"]
    assert got["alignment"]["target_tokens"] == ["A", "B", "C", "</s>"]
    assert np.sum(got["alignment"]["weights"], axis=1) == pytest.approx(np.ones(4), abs=1e-3)
    [got] = client.predict("abc", decoding={"choices": ["FAD", "CAB"]})["predictions"]
    assert got["output"] in ("FAD", "CAB")
    assert "libtorch" in maps.read_text()


def test_nbest_gives_as_many_outputs_where_they_are_drawn(client):
    [got] = client.predict("abc", nbest=3, decoding={"method": "sampling"})["predictions"]
    assert len(got["nbest"]) == 3


BAD = [
    (b'{"source": "ab', "body", "EOF"),
    (b"", "body", "not valid JSON"),
    (b"[" * 100_000, "body", "recursion"),
    (b"[1]", "body", "a JSON object"),
    (b"\xff\xfe", "body", "not valid JSON"),
    (b"{}", "source", "missing"),
    (b'{"source": 5}', "source", "5 is not a text"),
    (b'{"source": ["a", null]}', "source[1]", "null is not a text"),
    (b'{"source": []}', "source", "empty"),
    (b'{"source": ["a", " "]}', "source[1]", "empty"),
    (b'{"source": "a\\u0000"}', "source", "NUL"),
    (b'{"source": "\\ud800"}', "body", "not valid JSON"),
    (b'{"source": "%s"}' % (b"a" * 6000), "source", "6000 characters"),
    (b'{"source": "a", "sorce": 1}', "sorce", "did you mean source?"),
    (b'{"source": "a", "model": "cap"}', "model", "give one of caps"),
    (b'{"source": "a", "features": ["x"]}', "features", "1 values, expected 0"),
    (b'{"source": "a", "nbest": 0}', "nbest", "give at least 1"),
    (b'{"source": "a", "min_confidence": 2}', "min_confidence", "give at most 1"),
    (b'{"source": "a", "decoding": []}', "decoding", "object"),
    (b'{"source": "a", "decoding": {"beam_siez": 2}}', "decoding.beam_siez", "decoding.beam_size?"),
    (b'{"source": "a", "decoding": {"beam_size": "x"}}', "decoding.beam_size", "whole number"),
    (b'{"source": "a", "decoding": {"beam_size": 9999}}', "decoding.beam_size", "at most 64"),
    (b'{"source": "a", "decoding": {"max_length_extra": 1000000}}', "decoding.max_length_extra",
     "at most 1000"),
    (b'{"source": "a", "decoding": {"a.b": 1}}', "decoding.a.b", "no such setting"),
    (b'{"source": "a", "decoding": {"num_hypotheses": 3}}', "decoding.num_hypotheses", "beam_size"),
    (b'{"source": "a", "decoding": {"json_schema": "/etc/passwd"}}', "decoding.json_schema",
     "the schema itself"),
    (b'{"source": "a", "decoding": {"choices": ["z"]}}', "decoding.choices", "choices.txt:1: 'z'"),
    (b'{"source": "a", "decoding": {"choices": ["A\\nB"]}}', "decoding.choices", "a line break"),
    (b'{"source": "a", "decoding": {"choices": 5}}', "decoding.choices", "a list of texts"),
    (b'{"source": "a", "decoding": {"regex": "("}}', "decoding.regex", ""),
    (b'{"source": "a", "decoding": {"grammar": "/etc/passwd"}}', "decoding.grammar", ""),
]  # fmt: skip


def test_a_bad_request_gets_one_answer_and_the_server_goes_on(client):
    for body, where, message in BAD:
        status, _, answer = client.send("POST", "/v1/predict", body)
        assert status == 422, (body, answer)
        [(key, error)] = json.loads(answer).items()
        assert (key, error["where"]) == ("error", where)
        assert message in error["message"]
        assert "/tmp" not in error["message"]
    assert client.predict("abc")["predictions"][0]["output"] == "ABC"


def test_paths_and_methods_that_do_not_exist_are_errors_in_the_same_form(client):
    for method, path, allowed in [
        ("GET", "/x", None),
        ("GET", "/page.js/x", None),
        ("POST", "/predict", None),
        ("POST", "/../app.py", None),
        ("POST", "/", "GET, HEAD"),
        ("GET", "/v1/predict", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
        ("PUT", "/page.js", "GET, HEAD"),
    ]:
        status, headers, body = client.send(method, path)
        error = json.loads(body)["error"]
        assert (status, error["where"]) == (405 if allowed else 404, path)
        assert headers.get("allow") == allowed
        assert allowed is None or error["message"].endswith(f"send {allowed}")


def test_head_is_get_without_the_body(client):
    for path in ("/health", "/ready", "/", "/page.js", "/docs", "/v1/models"):
        status, headers, body = client.send("HEAD", path)
        assert (status, body) == (200, b"")
        assert headers["content-length"] == client.send("GET", path)[1]["content-length"]
    assert client.send("HEAD", "/x")[0] == 404
    status, headers, _ = client.send("HEAD", "/v1/predict")
    assert (status, headers["allow"]) == (405, "POST")


def test_a_large_body_is_refused_with_and_without_its_length(server):
    status, _, body = Client(server[1]).send("POST", "/v1/predict", b"a" * 10_000_000)
    assert status == 413
    assert json.loads(body)["error"]["where"] == "body"
    with socket.create_connection(("127.0.0.1", server[1])) as connection:
        head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")
        assert b" 413 " in connection.recv(100)


def test_other_hosts_and_pages_elsewhere_are_refused(server, client):
    ask = json.dumps({"source": "abc"}).encode()
    for headers, status in [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "["}, 403),
        ({"Origin": f"http://127.0.0.1:{server[1]}"}, 200),
    ]:
        found, answered, _ = client.send("POST", "/v1/predict", ask, **headers)
        assert found == status, headers
        assert "access-control-allow-origin" not in answered
        assert "script-src 'self';" in answered["content-security-policy"]


def test_the_models_are_described(trained, client):
    [model] = client.get("/v1/models")["models"]
    assert model["name"] == "caps"
    assert model["digest"] == digest_of(trained[0])
    assert model["task"] == "text"
    assert model["features"] == []
    assert model["decoding"]["beam_size"] == 1
    assert {*model["examples"][0]} == {"source", "features", "target"}
    assert model["examples"][0]["target"] == model["examples"][0]["source"].upper()


def test_the_docs_load_nothing_from_elsewhere(client):
    page = client.send("GET", "/docs")[2].decode()
    assert "//" not in page
    for path in (
        "/docs/files/swagger-ui-bundle.js",
        "/docs/files/swagger-ui.css",
        "/docs/start.js",
    ):
        assert path.removeprefix("/") in page
        assert client.send("GET", path)[0] == 200
    paths = client.get("/openapi.json")["paths"]
    assert {"/v1/predict", "/v1/models", "/v1/corrections", "/translate", "/metrics"} <= set(paths)
    body = paths["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "min_confidence" in body["properties"]


def test_the_metrics_count_what_happened(client):
    client.predict(["abc", "abd"])
    client.post("/v1/predict", {})
    text = client.send("GET", "/metrics")[2].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for name in (
        'dragoman_batch_rows_count{pool="ctranslate2"}',
        'dragoman_request_seconds_count{path="/v1/predict",status="200"}',
        'dragoman_errors_total{kind="invalid"}',
        'dragoman_tokens_total{model="caps",side="output"}',
        'dragoman_confidence_count{model="caps"}',
    ):
        assert float(values[name]) > 0, name
    assert float(values['dragoman_queue_rows{pool="ctranslate2"}']) == 0


def test_corrections_are_pairs_to_train_on(server, client):
    rows = [("abc", "ABD"), ('"a" "b"', '"A'), ("'é", "É\\")]
    for source, target in rows:
        assert client.post("/v1/corrections", {"source": source, "target": target})[0] == 200
    status, answer = client.post("/v1/corrections", {"source": "a", "target": ""})
    assert (status, answer["error"]["where"]) == (422, "target")
    status, answer = client.post("/v1/corrections", {"source": "a\tb", "target": "A"})
    assert (status, answer["error"]["where"]) == (422, "source")
    for source, target in [('"a""b"', "A"), ('"a"', 'A ""')]:  # fit would read quotes as syntax
        assert client.post("/v1/corrections", {"source": source, "target": target})[0] == 422
    assert [(one.source, one.target) for one in read_pairs(server[2])] == rows


def test_corrections_are_never_mixed_with_rows_of_other_columns(trained, tmp_path):
    path, [_, model] = tmp_path / "corrections.tsv", trained
    path.write_text("source\ttarget\none\t1")  # without an end
    corrections = Corrections(path, [model])
    corrections.add(CorrectionRequest(source="two", target="2"), model)
    assert path.read_text() == "source\ttarget\none\t1\ntwo\t2\n"
    with_features = dragoman.load(FEATURES)
    request = CorrectionRequest(source="two", features=["en"], target="2")
    with pytest.raises(RequestError, match="columns have changed"):  # a model that was replaced
        corrections.add(request, with_features)
    with pytest.raises(dragoman.DragomanError, match=r"tsv:1: other columns than .* language"):
        Corrections(path, [with_features])


def test_a_client_of_libretranslate_gets_translations(server, client):
    api = LibreTranslateAPI(f"http://127.0.0.1:{server[1]}/")
    assert api.translate("abc", "en", "de") == "ABC"
    assert api.languages()[0]["code"] == "caps"
    status, answer = client.post("/translate", {"q": ["abc", "fed"], "alternatives": 1})
    assert status == 200
    assert answer["translatedText"] == ["ABC", "FED"]
    assert [len(one) for one in answer["alternatives"]] == [1, 1]
    assert client.post("/translate", {"q": ""}) == (422, {"error": "source: the source is empty"})


def test_a_token_and_pages_that_may_ask(trained, tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("secret\n")
    allowed = "--allow-origin https://Good.example/ --allow-host me --allow-host me.example:80"
    words = ["--token-file", token, *allowed.split()]
    with running_server(trained[0], *words, "--libretranslate") as (_, port):
        client = Client(port)
        ask = json.dumps({"source": "abc"}).encode()
        assert client.send("POST", "/v1/predict", ask)[0] == 401
        assert client.send("GET", "/metrics", Authorization="Bearer secreu")[0] == 401
        status, answered, _ = client.send(
            "POST", "/v1/predict", ask, Authorization="Bearer secret",
            Origin="https://good.example", Host="me:80",
        )  # fmt: skip
        assert status == 200
        assert answered["access-control-allow-origin"] == "https://good.example"
        assert client.send("GET", "/health", Host="me.example:80")[0] == 200
        assert client.get("/health") == {"status": "alive"}
        assert client.get("/ready") == {"status": "ready"}
        assert client.send("GET", "/")[0] == 200
        status, _, body = client.send(
            "POST", "/v1/corrections", b"{}", Authorization="Bearer secret"
        )
        assert status == 404
        assert "--corrections FILE" in json.loads(body)["error"]["message"]
        assert client.post("/translate", {"q": "abc"})[0] == 403
        assert LibreTranslateAPI(f"http://localhost:{port}", "secret").translate("abc") == "ABC"


def test_sigterm_finishes_what_is_there_and_exits_with_0(trained):
    with running_server(trained[0]) as (process, port):
        clients = [Client(port) for _ in range(8)]
        for one in clients:  # one whose answer takes a while
            body = json.dumps({"source": make_words(500), "nbest": 8}).encode()
            one.connection.request("POST", "/v1/predict", body)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        for one in clients:
            response = one.connection.getresponse()
            assert response.status == 200
            assert len(json.loads(response.read())["predictions"]) == 500
        assert process.wait(20) == 0
        with pytest.raises(ConnectionRefusedError):
            Client(port).get("/health")


def test_a_replaced_folder_loses_no_request_and_a_broken_one_changes_nothing(trained, tmp_path):
    place, other = tmp_path / "model", ModelFolder.read(trained[0])
    shutil.copytree(trained[0], place)
    weights = {name: value.copy() for name, value in other.weights.items()}
    weights["output.bias"][5] += 100.0  # emits the same letter for ever
    answers, is_over = [], threading.Event()

    def ask(port):
        client = Client(port)
        while not is_over.is_set():
            content = client.predict("abc")
            answers.append((content["digest"], content["predictions"][0]["output"]))

    def wait_for(line):
        assert line in process.stderr.readline()

    with running_server(place) as (process, port), ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, port) for _ in range(4)]
        try:
            with staged_model_folder(place) as folder:
                replace(other, weights=weights).fill(folder)
            wait_for("model: reloaded")
            (place / "config.yaml").write_text("nonsense: 1\n")
            wait_for("the earlier model stays")
            time.sleep(0.2)
            process.send_signal(signal.SIGHUP)
            wait_for("the earlier model stays")
            last = Client(port).predict("abc")
        finally:
            is_over.set()
        for one in asking:
            one.result()
    by_digest = {}
    for digest, output in answers:
        by_digest.setdefault(digest, set()).add(output)
    assert len(by_digest) == 2
    assert all(len(outputs) == 1 for outputs in by_digest.values())
    assert by_digest[digest_of(trained[0])] == {"ABC"}
    assert last["digest"] == answers[-1][0] != digest_of(trained[0])


def test_a_folder_is_loaded_when_nothing_in_it_changes_any_more(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(FEATURES, place)
    models = ServedModels({"model": [place]}, dragoman.load)
    for change in (lambda: shutil.rmtree(place), lambda: shutil.copytree(FEATURES, place)):
        change()
        assert asyncio.run(models.reload()) == {}
    assert asyncio.run(models.reload()) == {"model": True}
    assert asyncio.run(models.reload()) == {}


def test_features_are_given_once_or_for_each_source(tmp_path):
    corrections = tmp_path / "corrections.tsv"
    with running_server(FEATURES, "--corrections", corrections) as (_, port):
        client = Client(port)
        assert client.get("/v1/models")["models"][0]["features"] == ["language"]
        expected = dragoman.load(FEATURES).predict(["seventeen", "siebzehn"], [["en"], ["de"]])
        content = client.predict(["seventeen", "siebzehn"], features=[["en"], ["de"]])
        assert [one["output"] for one in content["predictions"]] == expected
        content = client.predict(["seventeen", "sixteen"], features=["en"])
        assert [one["output"] for one in content["predictions"]] == ["17", "16"]
        assert client.predict("seventeen", features=["en"])["predictions"][0]["output"] == "17"
        [got] = client.predict("seventeen", features=["xx"])["predictions"]
        assert got["num_unknown"] == 1  # as predict reports it
        for features, where in [([["en"]], "features"), ([["en"], []], "features[1]"),
                                ([], "features")]:  # fmt: skip
            ask = {"source": ["one", "two"], "features": features}
            status, answer = client.post("/v1/predict", ask)
            assert (status, answer["error"]["where"]) == (422, where)
        row = {"source": "one", "features": ["en"], "target": "1"}
        assert client.post("/v1/corrections", row)[0] == 200
    settings = DataSettings(features=("language",))
    [pair] = read_pairs(corrections, settings)
    assert (pair.source, pair.features, pair.target) == ("one", ("language=en",), "1")


def test_an_ensemble_and_a_second_model_are_served_by_name(trained):
    words = [f"two={trained[0]},{trained[0]}", f"one={trained[0]}"]
    with running_server(*words, "--threads", "1") as (_, port):
        client = Client(port)
        assert client.post("/v1/predict", {"source": "abc"})[1]["error"]["where"] == "model"
        two, one = (client.predict("abc", model=name) for name in ("two", "one"))
        assert two["predictions"][0]["output"] == one["predictions"][0]["output"] == "ABC"
        assert two["digest"] == f"{one['digest']}+{one['digest']}"


def test_a_late_answer_is_504_and_one_request_too_many_503(trained):
    words = ["--timeout", "1", "--max-body", "100", "--max-requests", "1"]
    with running_server(trained[0], *words) as (process, port):
        sources = make_words(2000)
        decoding = {"beam_size": 8, "max_length_extra": 1000, "min_length": 1000}
        client = Client(port)
        status, answer = client.post("/v1/predict", {"source": sources, "decoding": decoding})
        assert (status, answer["error"]["where"]) == (504, "time")
        with socket.create_connection(("127.0.0.1", port)) as slow:  # a body that does not come
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
            )
            time.sleep(0.2)
            status, headers, _ = client.send("GET", "/ready")  # a second one at the same time
            assert (status, headers["retry-after"]) == (503, "1")
            assert b" 504 " in slow.recv(100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0  # it does not wait for the search whose request was given up


def workers_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]  # fmt: skip


def test_workers_answer_as_predict_share_the_figures_and_end_together(trained, tmp_path):
    sources = make_words(64, seed=4)
    expected = dragoman.load(trained[0]).predict(sources)
    corrections = tmp_path / "corrections.tsv"
    words = [trained[0], "--workers", "2", "--corrections", corrections]
    with running_server(*words) as (process, port):
        assert len(workers_of(process)) == 2

        def ask(source):  # a connection each: whoever accepts it answers
            client = Client(port)
            assert client.post("/v1/corrections", {"source": source, "target": "X"})[0] == 200
            return client.predict(source)["predictions"][0]["output"]

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(ask, sources)) == expected
        figures = Client(port).send("GET", "/metrics")[2].decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in figures if not line.startswith("#"))
        assert float(values['dragoman_confidence_count{model="model"}']) == len(sources)
        assert float(values['dragoman_queue_rows{pool="ctranslate2"}']) == 0
        head, *rows = corrections.read_text().splitlines()
        assert sorted(rows) == sorted(f"{source}\tX" for source in sources)
        assert head == "source\ttarget"
        process.send_signal(signal.SIGHUP)
        for _ in range(2):
            assert process.stderr.readline() == "dragoman: model: reloaded\n"
        clients = [Client(port) for _ in range(8)]
        for one in clients:  # one whose answer takes a while
            body = json.dumps({"source": make_words(500), "nbest": 8}).encode()
            one.connection.request("POST", "/v1/predict", body)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for one in clients:
            assert one.connection.getresponse().status == 200
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
        with pytest.raises(ConnectionRefusedError):
            Client(port).get("/health")


def test_a_worker_that_dies_is_replaced_once_its_model_can_be_loaded(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained[0], folder)
    with running_server(folder, "--workers", "2") as (process, port):
        read = process.stderr.readline
        first, second = workers_of(process)
        os.kill(first, signal.SIGKILL)
        assert read() == f"dragoman: worker {first} was ended by SIGKILL\n"
        assert Client(port).predict("abc")["predictions"][0]["output"] == "ABC"
        assert read() == "dragoman: another worker started\n"
        assert second in (pids := workers_of(process))
        assert len(pids) == 2
        folder.rename(tmp_path / "away")
        os.kill(second, signal.SIGKILL)
        assert any(
            "expected a model folder" in line for line in iter(read, "") if "no worker" in line
        )
        (tmp_path / "away").rename(folder)
        assert "dragoman: another worker started\n" in iter(read, "")
        pids = workers_of(process)
        process.kill()  # the workers see it, and end
        process.wait()
        for pid in pids:
            while (
                Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()
            ):
                time.sleep(0.05)


def test_workers_that_cannot_load_the_model_end_with_its_message(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained[0], folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    command = [sys.executable, "-m", "dragoman", "serve", str(folder), "--port", "0"]
    ended = [
        subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=False)
        for words in ([], ["--workers", "2"])
    ]
    assert [one.returncode for one in ended] == [2, 2]
    assert ended[1].stderr == ended[0].stderr != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "expected a model folder"),
        (["MODEL", "MODEL"], "two models are named model; give NAME="),
        (["MODEL", "--token-file", "open"], "others can read it; run chmod 600"),
        (["MODEL", "--token-file", "none"], "cannot be read"),
        (["MODEL", "--port", "USED"], "cannot be used: Address already in use"),
        (["MODEL", "--port", "99999"], "give a number from 0 to 65535"),
        (["MODEL", "--corrections", "no/folder.tsv"], "cannot be written"),
        (["MODEL", "--decoding.beam_siez", "2"], "did you mean decoding.beam_size?"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    words, message, trained, tmp_path, capsys, monkeypatch, server
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").write_text("secret")
    (tmp_path / "open").chmod(0o644)
    filled = {"MODEL": str(trained[0]), "USED": str(server[1])}
    typed = [filled.get(word, word) for word in words]
    typed += [] if "--port" in typed else ["--port", "0"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", *typed]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert message in capsys.readouterr().err
