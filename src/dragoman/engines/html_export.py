"""Export to one HTML file: the weights, the tokenizers, the page of the server, and html_*.js.

A headless Chromium checks it, driven over a pipe by the DevTools protocol: no driver, port or package.
Source: https://chromedevtools.github.io/devtools-protocol/ ("--remote-debugging-pipe": messages are
JSON, ended by a zero byte, read by the browser from descriptor 3 and written to 4).
"""

import base64
import hashlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Ids, Quantization
from dragoman.engines.parity import list_samples
from dragoman.errors import ModelFolderError
from dragoman.model_folder.folder import CONSTRAINT_FILES, ModelFolder
from dragoman.reading.pairs import take_features
from dragoman.settings import Settings
from dragoman.tokenizers.tokenizer import FIRST_TEXT_ID, Tokenizer

HtmlQuantization = Literal["float16", "int8"]

_KINDS = ("characters", "symbols", "bpe")
_MOST_BYTES = 500_000_000  # a browser reads the weights as one string, of at most 512 MiB (V8)
_NUM_EXAMPLES = 6
_SIZES = (
    "d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "activation", "norm_first",
    "positions", "max_positions",
)  # fmt: skip
_DECODING = (
    "beam_size", "num_hypotheses", "length_norm", "length_penalty", "stop", "max_length_ratio",
    "max_length_extra", "max_length", "min_length_ratio", "min_length", "no_repeat_ngram",
    "forbidden_tokens",
)  # fmt: skip
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S = 60.0


def find_html_errors(settings: Settings) -> list[str]:
    """Return why a model with these settings cannot be exported; nothing: it can."""
    tokenizer, decoding = settings.tokenizer, settings.decoding
    errors = [
        f"tokenizer.{side}.kind is {kind}: the page reads {', '.join(_KINDS)} only"
        for side, kind in (("source", tokenizer.source.kind), ("target", tokenizer.target.kind))
        if kind not in _KINDS
    ]
    if decoding.method != "beam":
        errors.append(f"decoding.method is {decoding.method}: the page has beam search only")
    errors += [
        f"decoding.{name} is set: the page has no constraints, no minimum risk and no grounding"
        for name in (*CONSTRAINT_FILES, "regex", "minimum_risk", "require_grounding")
        if getattr(decoding, name) not in ("", "none")
    ]
    return errors


def write_html(
    model_folder: ModelFolder, digest: str, name: str, quantization: HtmlQuantization, path: Path
) -> None:
    """Write the model `name` as one HTML file to `path`.

    Raises: ModelFolderError, when 16 bits cannot hold a weight, or the file would be too large.
    """
    settings, tokenizer = model_folder.settings, model_folder.tokenizer
    pointers = tokenizer.pointers
    tensors, weights = _pack(model_folder.weights, quantization)
    about = {
        "description": {
            "name": name,
            "digest": digest,
            "features": list(settings.data.features),
            "examples": [one._asdict() for one in list_samples(model_folder)[:_NUM_EXAMPLES]],
            "decoding": settings.decoding.model_dump(include={*_DECODING}),
        },
        "sizes": {
            **settings.model.model_dump(include={*_SIZES}),
            "target_vocab_size": tokenizer.target_vocab_size,
            "never_emitted": tokenizer.never_emitted,
        },
        "tensors": tensors,
        "source": _describe_side(tokenizer.source),
        "target": _describe_side(tokenizer.target),
        "features": list(tokenizer.features),
        "pointers": {**pointers.to_dict(), "lead": pointers.lead} if pointers else None,
        "frame": tokenizer.frame,
        "source_names": tokenizer.source_names(),
        "target_names": tokenizer.target_names(),
        "leading_tags": settings.data.leading_tags,
        "features_separator": settings.data.features_separator,
        "temperature": model_folder.calibration.temperature if model_folder.calibration else 1.0,
    }
    encoded = base64.b64encode(weights).decode()
    if len(encoded) > _MOST_BYTES:
        raise ModelFolderError(
            f"the weights take {len(encoded) >> 20:,} MiB in a page, and browsers read "
            f"{_MOST_BYTES >> 20}: use --quantization int8, or --to ctranslate2"
        )
    page = _fill_page(name, about, encoded)
    path.write_bytes(page.encode("utf-8", errors="replace"))  # a folder's name may be no text


def find_browser() -> str | None:
    """Return the path of a browser that can be driven here; None: there is none."""
    if os.name != "posix" or shutil.which("bash") is None:  # Windows has no such pipes
        return None
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser does not answer, or the page has thrown an error."""


class Browser:
    """One page of a browser that is started here, with a fresh profile in `folder`."""

    def __init__(self, program: str, folder: Path) -> None:
        to_browser, self._output = os.pipe()
        self._input, from_browser = os.pipe()
        self._process = subprocess.Popen(
            # The shell puts the pipes where the browser looks for them.
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "browser", program,
             *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._session, self._unread = 0, "", b""
        self.events: list[dict[str, Any]] = []
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target for target in targets if target["type"] == "page")
            attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime", "Audits"):
                self.call(f"{domain}.enable")
        except BrowserError:
            self._end()
            raise

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(timeout=_TIMEOUT_S)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._output)
        os.close(self._input)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the answer to a command; events that come before it are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        try:
            os.write(self._output, json.dumps(message).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError("it has ended") from error
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError(str(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str) -> list[dict[str, Any]]:
        """Show a page, wait until it is loaded and quiet, and return all that happened."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        return list(self.events)

    def run(self, script: str) -> Any:  # noqa: ANN401
        """Return the value of an expression of JavaScript on the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._input], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer for {_TIMEOUT_S:g} s")
            found = os.read(self._input, 1 << 20)
            if not found:
                raise BrowserError(f"it ended with exit code {self._process.wait()}")
            self._unread += found
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


class HtmlModel:
    """The page in a browser, to check it: greedy search and scores, from ids to ids."""

    name = "html"

    def __init__(self, browser: Browser, quantization: Quantization) -> None:
        self._browser = browser
        self.quantization: Quantization = quantization

    def search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None = None
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        assert prefixes is None
        decoding = config.decoding.model_dump(include={*_DECODING})
        decoding["forbidden_ids"] = config.forbidden_ids
        return [
            [
                Hypothesis(
                    ids=tuple(one["ids"]),
                    score=one["score"],
                    normalized_score=one["normalizedScore"],
                    is_complete=one["isComplete"],
                )
                for one in self._ask("search", source, decoding)
            ]
            for source in sources
        ]

    def score(self, sources: Ids, targets: Ids, config: SearchConfig) -> list[Hypothesis]:
        """Return each target with its score, without `log_probs`."""
        return [
            Hypothesis(
                ids=tuple(target),
                score=score if isinstance(score, int | float) else float("nan"),
                normalized_score=0.0,
                is_complete=True,
            )
            for source, target in zip(sources, targets, strict=True)
            for score in [self._ask("score", source, target)]
        ]

    def check_texts(self, model_folder: ModelFolder) -> None:
        """Raise `ModelFolderError` unless texts of held-out rows become the right ids and come back."""
        tokenizer, data = model_folder.tokenizer, model_folder.settings.data
        for text, values, reference in list_samples(model_folder):
            source, symbols = take_features(text, values, data.features, data)
            [ids] = tokenizer.encode_sources([source], [symbols])
            target = tokenizer.encode_targets([reference], [source])[0][1:-1]
            output = tokenizer.read_target(target, source)
            decoded = self._ask("decode", target, text)
            if self._ask("encode", text, values) != ids or decoded != output:
                raise ModelFolderError(
                    f"the page tokenizes {text[:40]!r} or {output[:40]!r} otherwise; this is a bug "
                    "of dragoman, report it with this message"
                )

    def _ask(self, function: str, *arguments: object) -> Any:  # noqa: ANN401
        given = ", ".join(map(json.dumps, arguments))
        return self._browser.run(f"check.{function}({given})")


@contextmanager
def open_page(program: str, path: Path) -> Iterator[Browser]:
    """Show the page at `path` in a new browser.

    Raises: BrowserError, when the browser does not start.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, Path(profile))
        try:
            browser.open(path.resolve().as_uri())
            yield browser
        finally:
            browser.close()


def _pack(
    weights: Mapping[str, NDArray[np.float32]], quantization: HtmlQuantization
) -> tuple[list[dict[str, Any]], bytes]:
    """Return the name, kind and shape of each tensor, and the bytes of all, as html_model.js reads.

    Vectors are never quantized to integers: they are small, and count more.
    """
    listed, content = [], bytearray()
    for name, weight in weights.items():
        rows = weight.reshape(-1, weight.shape[-1])  # (D,) -> (1, D)
        kind = quantization if weight.ndim > 1 else "float16"
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        if not np.isfinite(halves).all():
            raise ModelFolderError(
                f"{name} holds a number that 16 bits cannot (beyond 65,504, or NaN): it is not "
                "exported; train the model again"
            )
        if kind == "int8":
            scales = np.abs(rows).max(axis=1, keepdims=True).astype("<f4") / 127
            scales[scales == 0.0] = 1.0
            content += scales.tobytes() + np.rint(rows / scales).astype(np.int8).tobytes()
        else:
            content += halves.tobytes()
        listed.append({"name": name, "kind": kind, "rows": len(rows), "columns": rows.shape[1]})
    return listed, bytes(content)


def _describe_side(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the vocabulary of a side as html_model.js reads it: tokens from FIRST_TEXT_ID on."""
    settings, tokens = tokenizer.settings, tokenizer.to_dict()["tokens"]
    side = {
        "kind": settings.kind,
        "form": settings.unicode_form,
        "separator": tokenizer.separator,
        "tokens": tokens,
    }
    if settings.kind == "bpe":
        vocab = tokens["model"]["vocab"]
        side["tokens"] = sorted(vocab, key=vocab.__getitem__)[FIRST_TEXT_ID:]
        side["merges"] = [" ".join(pair) for pair in tokens["model"]["merges"]]
    return side


def _fill_page(name: str, about: dict[str, Any], weights: str) -> str:
    """Return the server's page with everything in it, and a policy that runs only its scripts."""
    folder, engines = files("dragoman") / "serving" / "page", files("dragoman") / "engines"
    page, style, script = (
        (folder / part).read_text("utf-8") for part in ("index.html", "page.css", "page.js")
    )
    scripts = ["html_pointers.js"] if about["pointers"] else []
    scripts += ["html_model.js", "html_adapter.js"]
    model = "\n".join((engines / one).read_text("utf-8") for one in scripts)
    policy = _POLICY.format(scripts=f"{_hash(model)} {_hash(script)}", style=_hash(style))
    content = json.dumps(about, separators=(",", ":")).replace("<", "\\u003c")
    data = (
        f'<script type="application/json" id="about">{content}</script>\n'
        f'<script type="text/plain" id="weights">{weights}</script>\n'
    )
    charset, module = '<meta charset="utf-8">', '<script type="module"'
    content = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    for tag, filled in (
        ("<title>dragoman</title>", f"<title>{escape(name)}</title>"),
        (charset, f"{charset}\n{content}"),
        ('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>"),
        (f'{module} src="server.js"></script>', f"{data}{module}>{model}</script>"),
        (f'{module} src="page.js"></script>', f"{module}>{script}</script>"),
    ):
        assert page.count(tag) == 1, tag
        page = page.replace(tag, filled)
    return page


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
