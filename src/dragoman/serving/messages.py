"""The JSON of the server: requests and responses, and errors that say where and what."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dragoman.configuration import describe_value, suggest
from dragoman.errors import shorten
from dragoman.evaluation.confidence import round_confidence
from dragoman.grounding import Kind
from dragoman.predictor import NOT_A_RECORD, Predictor
from dragoman.predictor import Prediction as Output
from dragoman.reading.pairs import Source
from dragoman.reading.row_errors import RowError

Body = TypeVar("Body", bound="Message")

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be; see the help of `dragoman serve`."""

    hosts: Collection[str] = ()  # names of this machine, besides localhost and its addresses
    origins: Collection[str] = ()  # pages elsewhere that may ask
    token: str = ""
    body_bytes: int = 1 << 20
    timeout_s: float = 30.0
    concurrent: int = 512
    queue_rows: int = 4096  # an eighth of them where PyTorch computes
    queue_bytes: int = 1 << 24


class RequestError(Exception):
    """A request that gets no answer: its status, and `where` something is wrong."""

    def __init__(self, status: int, kind: str, where: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        """For the metrics: invalid, too_large, queue_full, timeout, ..."""
        self.where = where

    @classmethod
    def invalid(cls, where: str, message: str) -> "RequestError":
        """Return the error of a wrong field."""
        return cls(422, "invalid", where, message)

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"where": self.where, "message": str(self)}}


class Message(BaseModel):
    """A JSON object; without unknown fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class PredictRequest(Message):
    """Sources to predict, and how."""

    model: str | None = None
    """Name of the model; not needed if there is only one."""
    source: str | list[str]
    """A text, or a list of texts."""
    features: list[str] | list[list[str]] | None = None
    """Values of the model's features: for each source a list, or one list for all."""
    decoding: dict[str, Any] = Field(default_factory=dict, examples=[{"beam_size": 5}])
    """Settings of `decoding` by their names, such as beam_size; choices are a list of texts, json_schema and grammar are given themselves, not as files."""
    min_confidence: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Mark outputs with a lower confidence, truncated ones, and broken records by low_confidence."""
    nbest: Annotated[int, Field(ge=1, le=64)] | None = None
    """Outputs for each source, best first; as many are searched, or drawn, if that is not set."""
    alignment: bool = False
    """Give the attention of each output token over the source tokens; computed by PyTorch."""


class CorrectionRequest(Message):
    """What a model should have written."""

    model: str | None = None
    source: str
    features: list[str] = []
    target: str


class Hypothesis(Message):
    """One of the outputs of a source."""

    output: str
    confidence: float
    score: float
    """Log-probability, in nats."""


class Alignment(Message):
    """Attention: weights[i][j] of target token i over source token j."""

    source_tokens: list[str]
    target_tokens: list[str]
    weights: list[list[float]]


class Span(Message):
    """A value of an output that is a record, and where it stands in the source."""

    field: str
    value: str
    start: int | None
    """In characters, which are Unicode code points; null: it does not stand there."""
    end: int | None
    kind: Kind


class FieldValue(Span):
    """A value of a record, where it stands in the source, and how sure the model is of it."""

    confidence: float


class Prediction(Hypothesis):
    """The best output of a source."""

    truncated: bool
    """Whether it reached the longest length before it ended."""
    nbest: list[Hypothesis] | None = None
    alignment: Alignment | None = None
    low_confidence: bool | None = None
    num_unknown: int | None = None
    """Tokens and features of the source that the model has never seen, if there are any."""
    record: dict[str, Any] | None = None
    """The output, if the model writes JSON objects; null: this one is none."""
    error: str | None = None
    """That the output is not a JSON object, if the model writes such."""
    fields: list[FieldValue] | None = None
    """The values of a record in their order, if the model writes records."""
    spans: list[Span] | None = None
    """The same without the empty ones, and without confidence."""
    source: str | None = None
    """The source without its leading tags, if it has any: spans are places in it."""
    num_left_out: int | None = None
    """Values that were left out, if there are any: decoding.require_grounding."""
    from_: Literal["memory"] | None = Field(None, alias="from")
    """memory: the target of a training pair, not an output of the model: decoding.memory."""
    row: str | None = None
    """That pair: `file:line`."""


class PredictResponse(Message):
    """One prediction for each source, in order."""

    model: str
    digest: str
    """SHA-256 of the weights."""
    predictions: list[Prediction]


def encode_json(content: object) -> bytes:
    """Return a response as JSON; half of a surrogate pair, from an escape in a record, is one again."""
    return _encode(content).encode(errors="backslashreplace")


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Return the message in `body`.

    Raises: RequestError, when it is not JSON, or not such a message.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A value that may be of several types has an error for each; the deepest has come furthest.
    details = max(found, key=lambda one: len(one["loc"]))
    name, *rest = map(str, details["loc"] or ("body",))
    where = shorten(name) + "".join(f"[{one}]" for one in rest if one.isdecimal())
    match details["type"]:
        case "json_invalid":
            message = f"not valid JSON: {details['ctx']['error']}"
        case "extra_forbidden":
            message = f"there is no such field{suggest(name, [*kind.model_fields])}"
        case "missing":
            message = "this field is missing"
        case "model_type":
            message = "expected a JSON object"
        case _:
            message = describe_value(details)
    raise RequestError.invalid(where, message)


def make_rows(request: PredictRequest, model: Predictor) -> list[Source]:
    """Return the rows to predict, as a file with these sources and features would give them.

    Raises: RequestError, when a source is empty, too long or no text, or the features do not fit.
    """
    texts = [request.source] if isinstance(request.source, str) else request.source
    if not texts:
        raise RequestError.invalid("source", "the list is empty; give at least one text")
    given: list[Any] = request.features or []
    is_nested = bool(given) and isinstance(given[0], list)
    values: list[list[str]] = given if is_nested else [given] * len(texts)
    if len(values) != len(texts):
        message = f"{len(values)} lists for {len(texts)} sources; give one for each"
        raise RequestError.invalid("features", message)
    rows = []
    for i, (text, row) in enumerate(zip(texts, values, strict=True)):
        where = "source" if isinstance(request.source, str) else f"source[{i}]"
        where_features = f"features[{i}]" if is_nested else "features"
        rows.append(make_row(text, row, model, where, where_features))
    return rows


def make_row(
    text: str, values: list[str], model: Predictor, where: str, where_features: str
) -> Source:
    """Return the row of one source; the places are for errors."""
    labels = model.feature_labels
    if len(values) != len(labels):
        names = ", ".join(labels) or "this model has no features"
        message = f"{len(values)} values, expected {len(labels)} ({names})"
        raise RequestError.invalid(where_features, message)
    row = model.make_row(text, values)
    if isinstance(row, RowError):
        raise RequestError.invalid(where, row.detail)
    return row


def describe_outputs(
    best_first: list[Output], request: PredictRequest, given: str
) -> dict[str, Any]:
    """Return the prediction of the source `given`, as `Prediction` says, from its outputs, at least one."""
    best = best_first[0]
    content = {**_describe_hypothesis(best), "truncated": not best.is_complete}
    if best.num_unknown:
        content["num_unknown"] = best.num_unknown
    if best.record_format:
        content |= _describe_record(best)
        if best.is_malformed:
            content["error"] = NOT_A_RECORD
        if best.source != given:
            content["source"] = best.source
    if best.memory_row:
        content |= {"from": "memory", "row": best.memory_row}
    if best.num_left_out:
        content["num_left_out"] = best.num_left_out
    if request.nbest is not None:
        content["nbest"] = [_describe_hypothesis(one) for one in best_first[: request.nbest]]
    if request.alignment:
        content["alignment"] = {
            "source_tokens": best.source_tokens,
            "target_tokens": best.tokens,
            "weights": [[round(weight, 4) for weight in row] for row in best.alignment],
        }
    if request.min_confidence is not None:
        is_low = content["confidence"] < request.min_confidence
        content["low_confidence"] = is_low or not best.is_complete or best.is_malformed
    return content


def _describe_record(output: Output) -> dict[str, Any]:
    """Return the fields of `Prediction` that only records have."""
    content: dict[str, Any] = {} if output.record_format != "json" else {"record": output.record}
    content |= {"spans": [], "fields": []}
    for one, span in output.placed_fields:
        absent = Span(field=one.field, value=one.value, start=None, end=None, kind="none")
        found = span._asdict() if span else absent.model_dump()
        content["spans"] += [found] if span else []
        content["fields"].append({**found, "confidence": round_confidence(one.confidence)})
    return content


def _describe_hypothesis(output: Output) -> dict[str, Any]:
    return {
        "output": output.text,
        "confidence": round_confidence(output.confidence),
        "score": round(output.score, 6),
    }
