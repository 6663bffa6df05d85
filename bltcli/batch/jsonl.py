"""Prompts as JSON records, one per line: bltcli's own form, and that of OpenAI's batch files."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from bltcli.batch.journal import bytes_fields
from bltcli.batch.lines import Lines
from bltcli.batch.ordering import Item, noise_key
from bltcli.decoding.driver import Request
from bltcli.decoding.stop import Stop
from bltcli.errors import UsageError
from bltcli.sampling import Sampler

FIELDS: Final = ("id", "prompt", "prompt_base64", "max_bytes", "stop")
#: Of a completion request of OpenAI's: what is read, what changes nothing, and what must be as it is here.
_READ: Final = ("prompt", "max_tokens", "stop")
_IGNORED: Final = ("model", "user", "metadata", "stream_options", "service_tier")
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,), "best_of": (1,), "stream": (False,), "echo": (False,), "logprobs": (None,), "suffix": (None, ""),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": (None, {}),
}  # fmt: skip
_SAMPLING: Final = ("temperature", "top_p", "seed")


@dataclass(frozen=True)
class Asked:
    """What an item of `RecordSource` holds: a record's name and form, and what is wrong with it."""

    id: Any
    model: str | None = None  # the name in an OpenAI request, which its answer repeats
    openai: bool = False
    error: str | None = None
    prompt_bytes: int = 0


class RecordSource:
    """Lines of JSON as items of one request each; blank lines are none. A line that asks for nothing that can be done
    is an item without a request."""

    def __init__(self, lines: Lines, stop: Stop, sampler: Sampler) -> None:
        """`stop` is for records that name no end of their own; requests for other sampling than `sampler` are
        refused."""
        self._lines, self._stop, self._sampler = lines, stop, sampler
        self._number = 0
        self._line = 0

    def take(self, *, wait: bool) -> Item | None:
        while True:
            line = self._lines.take(wait=wait)
            if line is None:
                return None
            self._line += 1
            if line.body.strip():
                break
        asked, prompt, stop = self._read(line.body)
        number, self._number = self._number, self._number + 1
        requests = [] if asked.error is not None else [Request(record_key(asked.id), prompt, stop)]
        return Item(number, asked, requests, len(line.body) + len(line.end))

    def _read(self, line: bytes) -> tuple[Asked, bytes, Stop]:
        asked = Asked(id=self._line)
        try:
            record = _object(json.loads(line), "the record")
            if "custom_id" in record:
                body = record.get("body")
                model = body.get("model") if isinstance(body, dict) else None
                asked = replace(asked, id=record["custom_id"], model=model, openai=True)
                body = _object(body, "body")
                self._check_body(body)
                prompt, limit, stop = _prompt(body), body.get("max_tokens"), body.get("stop")
            else:
                asked = replace(asked, id=record.get("id", self._line))
                _check_fields(record, FIELDS, "the record")
                prompt, limit, stop = _prompt(record), record.get("max_bytes"), record.get("stop")
            asked = replace(asked, prompt_bytes=len(prompt))
            return asked, prompt, Stop(max_bytes=self._limit(limit), strings=self._strings(stop))
        except (ValueError, RecursionError, UsageError) as error:
            text = f"line {self._line}: {error}" if isinstance(error, UsageError) else f"line {self._line} is no JSON"
            return replace(asked, error=text), b"", self._stop

    def _check_body(self, body: dict[str, Any]) -> None:
        _check_fields(body, (*_READ, *_IGNORED, *_FIXED, *_SAMPLING), "body")
        for name, allowed in _FIXED.items():
            if name in body and body[name] not in allowed:
                raise UsageError(f"{name} is {json.dumps(body[name])}, which is not done here; leave it out")
        for name in _SAMPLING:
            ours = getattr(self._sampler, name)
            if body.get(name) not in (None, ours):
                raise UsageError(f"{name} is {json.dumps(body[name])}, this run has {ours}; give --{_flag(name)}")

    def _limit(self, value: Any) -> int:
        if value is None:
            return self._stop.max_bytes
        if type(value) is not int or value < 1:
            raise UsageError(f"the most bytes to generate are {json.dumps(value)}; give a whole number from 1 on")
        return value

    def _strings(self, value: Any) -> tuple[bytes, ...]:
        if value is None:
            return self._stop.strings
        strings = [value] if isinstance(value, str) else value
        if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
            raise UsageError(f"stop is {json.dumps(value)}; give a text or a list of texts")
        return tuple(_utf8(string, "stop") for string in strings)


def record_key(name: Any) -> int:
    """What keys the noise of sampling for the record of this id."""
    return noise_key(json.dumps(name).encode())


def answer(item: Item) -> tuple[dict[str, Any], bool]:
    """The record that a finished item of `RecordSource` comes to, in the form of its request; whether it failed."""
    asked: Asked = item.content
    error = asked.error if asked.error is not None else item.found[0].error
    if error is not None:
        return (_openai(asked, None, error) if asked.openai else {"id": asked.id, "error": error}), True
    result = item.found[0]
    text = bytes_fields("text", result.output)
    if not asked.openai:
        return {"id": asked.id, **text, "finish_reason": result.end, "new_bytes": len(result.output)}, False
    reason = "stop" if result.end in ("eos", "stop") else "length"
    used = {
        "prompt_tokens": asked.prompt_bytes,
        "completion_tokens": len(result.output),
        "total_tokens": asked.prompt_bytes + len(result.output),
    }
    body = {
        "id": f"cmpl-{_name(asked)}",
        "object": "text_completion",
        "created": 0,  # a run that is resumed gives the same answer
        "model": asked.model or "bltcli",
        "choices": [{"index": 0, **text, "logprobs": None, "finish_reason": reason}],
        "usage": used,
    }
    return _openai(asked, body, None), False


def to_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON, in UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in an id
        return json.dumps(record).encode() + b"\n"


def _openai(asked: Asked, body: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    response = None if body is None else {"status_code": 200, "request_id": f"req_{_name(asked)}", "body": body}
    failure = None if error is None else {"code": "failed", "message": error}
    return {"id": f"batch_req_{_name(asked)}", "custom_id": asked.id, "response": response, "error": failure}


def _name(asked: Asked) -> str:
    return f"{record_key(asked.id):016x}"


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is no JSON object")
    return value


def _check_fields(record: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in record:
        if name not in known:
            raise UsageError(f"{what} has a field {json.dumps(name)}; the fields are {', '.join(known)}")


def _prompt(record: dict[str, Any]) -> bytes:
    given = [name for name in ("prompt", "prompt_base64") if name in record]
    if len(given) != 1:
        raise UsageError("there is no prompt" if not given else "there are two prompts")
    value = record[given[0]]
    if isinstance(value, list) and len(value) == 1:  # as OpenAI allows it
        value = value[0]
    if not isinstance(value, str):
        raise UsageError(f"{given[0]} is no text")
    if given[0] == "prompt":
        return _utf8(value, "prompt")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise UsageError(f"prompt_base64 is no base64: {error}") from error


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} holds half a surrogate pair; bytes that are no text go into prompt_base64") from error


def _flag(name: str) -> str:
    return name.replace("_", "-")
