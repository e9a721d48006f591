"""The page in a real browser, as one file and on the server; skipped where there is no browser."""

import json
import shutil
from pathlib import Path

import pytest

import dragoman
from conftest import BRIEF, SMALL, quiet_console
from dragoman.model_folder.folder import ModelFolder
from dragoman.model_folder.memory import SourceGroups
from dragoman.reading.pairs import Pair
from reporting.browser import FAINT_TEXTS, NAMES, Browser, find_browser
from serving.served import running_server

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a browser: none of {', '.join(NAMES)} is on the path"
)
# Waits until a condition holds, at most 20 s.
WAIT = """
async condition => {
  for (let i = 0; i < 1000; i++) {
    const found = condition();
    if (found) return found;
    await new Promise(resume => setTimeout(resume, 20));
  }
  throw new Error(`not within 20 s: ${condition}`);
}
"""
HOSTILE = """<img src=x onerror="document.title='taken'"></script><script>document.title='taken'</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    folder = shutil.copytree(trained[0], tmp_path_factory.mktemp("page") / "capitals")
    assert dragoman.export(folder, "html").is_equal
    return folder / "html" / "capitals.html"


@pytest.fixture
def page(browser, file):
    browser.emulate()
    browser.resize(1280)
    browser.open(file)
    return browser


def type_in(page, text):
    page.run(f"document.getElementById('source').value = {json.dumps(text)}")


def press(page, key, code, modifiers=0):
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
            modifiers=modifiers,
        )  # fmt: skip


def predict(page, text, outputs=1):
    """The texts of the outputs on the page, after `text` was typed."""
    type_in(page, text)
    page.run(f"document.getElementById('nbest').value = '{outputs}'")
    page.run("document.getElementById('nbest').dispatchEvent(new Event('change'))")
    page.run("document.getElementById('form').requestSubmit()")
    wait_for(page, "document.querySelector('article, #error:not([hidden])')")
    return list_texts(page, ".output")


def wait_for(page, condition):
    return page.run(f"({WAIT})(() => {condition})")


def list_texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")


def catch_download(page):
    """Keep the next file that the page gives, in `given`."""
    page.run(
        "URL.createObjectURL = blob => (blob.text().then(text => (window.given = text)), 'blob:x')"
    )


def find_faults(events, own=("file:", "data:")):
    """What a console, a policy or an audit says, and requests to elsewhere."""
    faults = [e for e in events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown",
              "Runtime.consoleAPICalled", "Audits.issueAdded")]  # fmt: skip
    addresses = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return faults + [one for one in addresses if not one.startswith(own)]


def test_typed_text_comes_back_predicted_and_nothing_is_asked_elsewhere(page):
    assert predict(page, "abc\n\nhead") == ["ABC", "HEAD"]
    assert page.run("document.title") == "capitals"
    assert list_texts(page, ".source") == ["abc", "head"]
    assert list_texts(page, "#status") == ["2 lines predicted."]
    assert find_faults(page.events) == []


def test_the_policy_stops_scripts_and_requests(page):
    assert page.run("fetch('https://example.com').then(() => 'sent', () => 'stopped')") == "stopped"
    page.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert page.run("typeof window.ran") == "undefined"


def test_more_outputs_come_with_bars_and_the_best_is_first(page):
    assert predict(page, "abc", outputs=3) == ["ABC"]
    assert list_texts(page, ".nbest .text")[0] == "ABC"
    assert page.run("document.getElementById('beam').value") == "3"
    widths = page.run(
        "[...document.querySelectorAll('.bar')].map(e => parseFloat(getComputedStyle(e, '::before').width))"
    )
    assert len(widths) == 3
    assert widths[0] > 50 > widths[1]


def test_a_token_of_the_output_shows_where_the_model_looked(page):
    predict(page, "abc")
    wait_for(page, "document.querySelectorAll('.tokens button').length === 4")
    assert list_texts(page, ".seen .token") == ["a", "b", "c", "</s>"]
    box = page.run(
        "(r => [r.x + 5, r.y + 5])(document.querySelectorAll('.tokens button')[1].getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    wait_for(page, "document.querySelector('.chosen')")
    shares = page.run(
        "[...document.querySelectorAll('.seen .token')].map(e => Number(e.style.getPropertyValue('--share')))"
    )
    assert sum(shares) == pytest.approx(1.0, abs=1e-3)
    assert "B: looked at" in page.run("document.querySelector('.chosen').ariaLabel")


def test_all_is_reached_by_keyboard(page):
    page.run("document.getElementById('source').focus()")
    page.call("Input.insertText", text="face")
    press(page, "Enter", 13, modifiers=2)
    wait_for(page, "document.querySelectorAll('.tokens button').length === 5")
    reached = []
    for _ in range(40):
        press(page, "Tab", 9)
        reached.append(page.run("document.activeElement.innerText || document.activeElement.id"))
    for name in (
        "Predict",
        "Open a file …",
        "1\n3\n5\n10",
        "Options",
        "Where the model looked",
        "F",
        "This is wrong …",
    ):
        assert name in reached
    assert page.run(
        "[...document.querySelectorAll('input, select, textarea')].every(e => e.hidden || e.labels.length || e.ariaLabel)"
    )


def test_a_dropped_file_comes_back_with_outputs(page):
    catch_download(page)
    lines = ["abc", "", "head", *["bed"] * 30]
    page.run(
        "(() => { const data = new DataTransfer();"
        f"data.items.add(new File([{json.dumps(chr(10).join(lines) + chr(10))}], 'words.txt'));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})) })()"
    )
    given = wait_for(page, "window.given").splitlines()
    assert given[0] == "source\toutput\tconfidence"
    assert [row.split("\t")[:2] for row in given[1:]] == [[line, line.upper()] for line in lines]
    assert given[2] == "\t\t"
    assert float(given[1].split("\t")[2]) > 0.5


def test_corrections_are_downloaded_as_pairs_that_fit_reads(page, tmp_path):
    predict(page, 'a"b')
    page.run(
        "[...document.querySelectorAll('.actions button')].find(b => b.innerText.startsWith('This is')).click()"
    )
    page.run("document.querySelector('.actions input').value = 'A\"B\\tC'")
    page.run("document.querySelector('.actions form').requestSubmit()")
    wait_for(page, "!document.getElementById('corrections').hidden")
    assert list_texts(page, "#corrections") == ["Download 1 correction (TSV)"]
    catch_download(page)
    page.run("document.getElementById('corrections').click()")
    path = tmp_path / "corrections.tsv"
    path.write_text(wait_for(page, "window.given"))
    [pair] = dragoman.read_pairs(path, dragoman.Settings().data)
    assert (pair.source, pair.target) == ('a"b', 'A"B\tC')
    assert page.run("document.getElementById('corrections').hidden")


def test_texts_of_any_script_stand_in_their_direction_and_are_never_html(page):
    texts = ["שלום עולם", "👩‍👩‍👧‍👦 مرحبا", HOSTILE, "e\u0301 日本"]
    predict(page, "\n".join(texts))
    wait_for(page, f"document.querySelectorAll('article').length === {len(texts)}")
    assert page.run("[...document.querySelectorAll('.source')].map(e => e.textContent)") == texts
    directions = page.run(
        "[...document.querySelectorAll('.source')].map(e => getComputedStyle(e).direction)"
    )
    assert directions == ["rtl", "rtl", "ltr", "ltr"]
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.title") == "capitals"


def test_names_and_examples_of_a_stranger_are_never_html(browser, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "a<b>&'\"<script>")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["samples"][0].update(source=HOSTILE, reference=HOSTILE)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    dragoman.export(folder, "html")
    browser.open(next((folder / "html").glob("*.html")))
    assert browser.run("document.title") == folder.name
    assert browser.run("document.querySelector('#examples bdi').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('script').length") == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_cut_off_or_faint(width, scheme, page, tmp_path):
    page.resize(width, is_phone=width < 500)
    page.emulate(scheme=scheme)
    predict(page, "abcdefgh" * 20, outputs=3)
    assert page.run("[document.documentElement.scrollWidth, window.innerWidth]") == [width] * 2
    page.run("document.querySelectorAll('details').forEach(one => (one.open = true))")
    assert page.run(FAINT_TEXTS) == []
    page.take_picture(tmp_path / "page.png")  # for the eye
    assert page.run("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(255, 255, 255)", "dark": "rgb(18, 23, 29)"
    }[scheme]  # fmt: skip


def test_a_model_with_features_asks_for_each(browser, tmp_path):
    folders = Path(__file__).parents[1] / "folders" / "0.1"
    folder = Path(shutil.copytree(folders / "features", tmp_path / "numbers"))
    dragoman.export(folder, "html")
    browser.open(folder / "html" / "numbers.html")
    sample = ModelFolder.read(folder).metrics["samples"][1]
    browser.run("document.querySelectorAll('#examples button')[1].click()")
    wait_for(browser, "document.querySelector('article')")
    assert browser.run("document.querySelector('#features input').name") == "language"
    assert browser.run("document.querySelector('#features input').value") == sample["features"][0]
    assert list_texts(browser, ".output") == [sample["prediction"]]


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """The address of a server with two models, and the file of its corrections."""
    corrections = tmp_path_factory.mktemp("corrections") / "corrections.tsv"
    words = [f"capitals={trained[0]}", f"more={trained[0]}", "--corrections", corrections]
    with running_server(*words) as (_, port):
        yield f"http://127.0.0.1:{port}/", corrections


@pytest.fixture
def served(browser, server):
    browser.emulate()
    browser.resize(1280)
    browser.open(server[0])
    wait_for(browser, "document.title === 'capitals'")
    return browser


def test_the_servers_page_predicts_and_asks_its_server_alone(served, server):
    assert predict(served, "abc\nhead", outputs=3) == ["ABC", "HEAD"]
    assert list_texts(served, "#model option") == ["capitals", "more"]
    served.run("document.querySelector('article summary').click()")
    wait_for(served, "document.querySelectorAll('.tokens button').length === 4")
    assert find_faults(served.events, server[0]) == []
    policy = served.run("fetch('/').then(answer => answer.headers.get('Content-Security-Policy'))")
    [scripts] = [one for one in policy.split("; ") if one.startswith("script-src")]
    assert scripts == "script-src 'self'"


def test_the_servers_page_constrains_outputs(served):
    served.run("document.getElementById('regex').value = '[A-D]+'")
    assert set(predict(served, "head")[0]) <= set("ABCD")
    served.run("document.getElementById('regex').value = ''")
    served.run("document.getElementById('choices').value = 'HEAD\\nABE'")
    assert predict(served, "abc\nhead") == ["ABE", "HEAD"]
    served.run("document.getElementById('choices').value = ''")
    served.run("document.getElementById('schema').value = '{\"enum\": [1]}'")
    assert predict(served, "abc") == []
    assert list_texts(served, "#error")[0].startswith("decoding")


def test_an_answer_from_the_training_pairs_is_marked(browser, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "model")
    pairs = [Pair("abc", "<b>", (), 12, "pairs.tsv")]
    SourceGroups.collect(pairs).remember(pairs, ["pairs.tsv"], 0.9, 1000).write(folder)
    with running_server(folder) as (_, port):
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.title === 'model'")
        assert predict(browser, "abc\nhead") == ["<b>", "HEAD"]
        assert list_texts(browser, "article .note") == ["From the training pairs, pairs.tsv:12"]
        assert list_texts(browser, "article summary") == ["Where the model looked"]


def test_the_server_keeps_corrections(served, server):
    predict(served, "abc")
    served.run(
        "[...document.querySelectorAll('.actions button')].find(b => b.innerText.startsWith('This is')).click()"
    )
    served.run("document.querySelector('.actions input').value = 'XYZ'")
    served.run("document.querySelector('.actions form').requestSubmit()")
    wait_for(served, "document.querySelector('.actions form').innerText.includes('Kept')")
    assert server[1].read_text().splitlines()[-1].split("\t") == ["abc", "XYZ"]


def test_a_line_that_the_server_refuses_is_named(served):
    predict(served, "abc\n\n" + "a" * 9999)
    wait_for(served, "!document.getElementById('error').hidden")
    assert list_texts(served, "#error")[0].startswith("line 3: ")


def test_a_server_with_a_token_asks_for_it_once(browser, trained, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    with running_server(f"capitals={trained[0]}", "--token-file", token) as (_, port):
        browser.call(
            "Page.addScriptToEvaluateOnNewDocument", source="window.prompt = () => 'secret'"
        )
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.title === 'capitals'")
        assert predict(browser, "abc") == ["ABC"]


def test_values_of_a_record_are_marked_in_the_input_with_their_fields(browser, tmp_path):
    names = ("Ada", "Bob", "Eve", "Zoë")
    pairs = [
        (f"👍 {one} {n}.", f"who: {one} | n: {n} | at: Ulm") for one in names for n in range(9)
    ]
    words = [*SMALL, *BRIEF, "--tokenizer.pointers", "false"]  # choices are spelled
    settings = dragoman.read_settings(None, words)
    dragoman.fit(pairs, tmp_path / "records", settings, console=quiet_console())
    with running_server(tmp_path / "records") as (_, port):
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.title === 'records'")
        browser.run("document.getElementById('choices').value = 'who: Zoë | n: 7 | at: Ulm'")
        predict(browser, "👍 Zoë 7.")
        assert list_texts(browser, "mark") == ["Zoë", "7"]
        assert browser.run("[...document.querySelectorAll('mark')].map(one => one.title)") == [
            "who",
            "n",
        ]
        assert "Not in the input: at" in list_texts(browser, "article .note")
        assert list_texts(browser, ".source") == ["👍 Zoë 7."]
