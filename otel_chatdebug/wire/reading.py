"""Small readers that every format needs: JSON that may be garbage, names, counts, errors.

All of them take anything and never raise: what a provider sends is not ours to trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from otel_chatdebug.wire.types import Facts, RequestFacts, WireError

MAX_NAME = 256
"""Characters of a model's name, an id, a finish reason, an error's type or code."""

MAX_MESSAGE = 2_000
"""Characters of an error's message."""

MAX_CHOICES = 128
"""Choices of one response whose finish reasons are kept; OpenAI's own limit for ``n``."""

MAX_COUNT = 2**53
"""The largest number of tokens that is believed: sums of it are numbers in every database, and on spans."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")
"""As protobuf spells it in JSON."""

_decoder = json.JSONDecoder(parse_constant=str)
"""NaN and Infinity become text: they are no JSON, and PostgreSQL would refuse the row."""


def loads(data: bytes | str) -> Any:
    """The JSON value, or None for what is none. Invalid UTF-8 becomes U+FFFD; never raises."""
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    try:
        if text.startswith("{"):  # `decode` searches for white space around it, which mostly is not there
            value, end = _decoder.raw_decode(text)
            if end == len(text):
                return value
        return _decoder.decode(text)
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand times "["
        return None


DONE: Final[Any] = object()
"""What stands for ``[DONE]``, the end of a stream in the words of OpenAI and its relatives: no JSON."""

Parsed: TypeAlias = tuple[str | None, Any]
"""An event's name, and what its data is: a JSON value, `DONE`, or None for what is neither."""


def value_of(data: bytes | str) -> Any:
    """What the data of an event is, see `Parsed`. Never raises."""
    value = loads(data)
    if value is None and len(data) < _LONGEST_DONE:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        return DONE if text.strip() == "[DONE]" else None
    return value


_LONGEST_DONE = 64
"""Characters; it may have white space around it."""


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """``value`` where it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def name(value: Any) -> str | None:
    """A short text; None for anything else and for the empty text (Azure's first chunk has ``"model": ""``)."""
    return value[:MAX_NAME] if isinstance(value, str) and value else None


def model_in(path: str, pattern: re.Pattern[str]) -> str | None:
    """The model (or deployment) that a URL's path names: the group of ``pattern``."""
    match = pattern.search(path)
    return name(match[1]) if match else None


def count(value: Any) -> int | None:
    """A number of tokens; None for anything that is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None


def first_count(*values: Any) -> int | None:
    """The first that is a number of tokens."""
    return next((known for value in values if (known := count(value)) is not None), None)


def add(*counts: int | None) -> int | None:
    """The sum of what is known; None when the first is not known."""
    return None if counts[0] is None else sum(value or 0 for value in counts)


def total(given: Any, *counts: int | None) -> int | None:
    """The total that the provider gave, else the sum where every part of it is known."""
    known = count(given)
    if known is None and None not in counts:
        return sum(value or 0 for value in counts)
    return known


def set_finish_reason(facts: Facts, index: Any, reason: Any) -> None:
    """``facts.finish_reasons[i]`` is choice i's; an empty text stands for a choice that has not finished yet."""
    text = name(reason)
    if text is None or not isinstance(index, int) or not 0 <= index < MAX_CHOICES:
        return
    reasons = facts.finish_reasons
    while len(reasons) <= index:
        reasons.append("")
    reasons[index] = text


OPTIONS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "maxOutputTokens": "max_tokens",  # Gemini
    "maxTokens": "max_tokens",  # Bedrock's Converse
    "num_predict": "max_tokens",  # Ollama
    "temperature": "temperature",
    "top_p": "top_p",
    "topP": "top_p",
    "top_k": "top_k",
    "topK": "top_k",
    "frequency_penalty": "frequency_penalty",
    "frequencyPenalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "presencePenalty": "presence_penalty",
    "seed": "seed",
    "random_seed": "seed",  # Mistral
    "n": "choice.count",
    "candidateCount": "choice.count",  # Gemini
}
"""Body key -> the last part of the ``gen_ai.request.*`` attribute, for options that are numbers."""

STOPS = frozenset({"stop", "stop_sequences", "stopSequences"})
"""Body keys of stop sequences: a text, or a list of them."""


def option(key: str, value: Any) -> tuple[str, Any] | None:
    """The name and value of an option that every provider has; None for any other, or a value that is none."""
    if key in OPTIONS and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COUNT:
        return OPTIONS[key], value
    if key in STOPS and (stops := strings([value] if isinstance(value, str) else value)):
        return "stop_sequences", stops
    return None


def option_groups(body: Mapping[str, Any], nested: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """``body``, and each of its objects that hold options themselves, with what stands before their names."""
    yield "", body
    for outer in nested:
        yield f"{outer}.", mapping(body.get(outer))


def request_options(body: Mapping[str, Any], *nested: str) -> dict[str, Any]:
    """The options of a request that have an attribute: numbers, and the stop sequences."""
    return dict(
        found
        for _, group in option_groups(body, nested)
        for key, value in group.items()
        if (found := option(key, value))
    )


def plain_request_facts(body: Mapping[str, Any], *nested: str) -> RequestFacts:
    """Of a request whose body has ``model``, ``stream`` and the options, these also in ``nested`` objects."""
    return RequestFacts(
        model=name(body.get("model")), stream=body.get("stream") is True, options=request_options(body, *nested)
    )


def taken_out(body: Mapping[str, Any], outer: str, key: str) -> tuple[Any, Mapping[str, Any]]:
    """What an object in ``body`` has under ``key``, and the body without it."""
    inner = body.get(outer)
    if not isinstance(inner, dict) or key not in inner:
        return None, body
    return inner[key], {**body, outer: {name: value for name, value in inner.items() if name != key}}


def strings(value: Any) -> list[str]:
    """The texts in a list, bounded; an empty one where there are none."""
    return [text[:MAX_NAME] for text in items(value)[:MAX_CHOICES] if isinstance(text, str)]


def error_from_body(body: Any) -> WireError | None:
    """The error that a body tells, in whichever of the usual shapes; None where it tells none.

    ``{"error": {"message", "type" | "status", "code"}}``, ``{"type": "error", "error": {...}}``, ``{"error": "text"}``,
    ``{"object": "error", "message", "type", "code"}``, ``{"type": "error", "message", "code"}``, ``{"detail": ...}``.
    The type is ``error`` where the provider names none.
    """
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if isinstance(error, dict) and error:
        return _error(error)
    if isinstance(error, str) and error:
        return WireError(type="error", message=error[:MAX_MESSAGE])
    if body.get("object") == "error" or body.get("type") == "error":
        return _error({key: value for key, value in body.items() if (key, value) != ("type", "error")})
    if "detail" in body:
        return _error_from_detail(body["detail"])
    return None


def _error(error: Mapping[str, Any]) -> WireError:
    raw_code = error.get("code")
    code = str(raw_code)[:MAX_NAME] if isinstance(raw_code, str | int) and raw_code != "" else None
    message = error.get("message")
    return WireError(
        type=name(error.get("type")) or name(error.get("status")) or code or "error",
        message=message[:MAX_MESSAGE] if isinstance(message, str) else "",
        code=code,
        retry_after=_retry_delay(error),
    )


def _retry_delay(error: Mapping[str, Any]) -> str | None:
    """Google's APIs send no ``Retry-After``, but a ``google.rpc.RetryInfo`` with a duration such as ``34.07s``."""
    for detail in map(mapping, items(error.get("details"))[:MAX_CHOICES]):
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and (found := _DURATION.fullmatch(delay)):
            return found[1]
    return None


def _error_from_detail(detail: Any) -> WireError | None:
    """FastAPI's shape, which Mistral and many self-hosted servers have: a text, or a list of validation errors."""
    if isinstance(detail, str):
        return WireError(type="error", message=detail[:MAX_MESSAGE])
    if isinstance(detail, dict):
        return _error(detail)
    if isinstance(detail, list):
        return WireError(type="validation_error", message="; ".join(_validation_errors(detail))[:MAX_MESSAGE])
    return None


def _validation_errors(detail: list[Any]) -> Iterable[str]:
    for entry in detail[:MAX_CHOICES]:
        where = ".".join(str(part)[:MAX_NAME] for part in items(mapping(entry).get("loc")))
        yield f"{where}: {str(mapping(entry).get('msg', ''))[:MAX_NAME]}"
