"""The prompts of a benchmark: one text, or records of a JSON Lines file."""

from __future__ import annotations

import json

from bltcli.errors import UsageError


def read_prompts(data: bytes, file: str | None) -> tuple[bytes, ...]:
    """`data` as one prompt, or of a FILE.jsonl its "prompt" on each line. UsageError for a line without one."""
    if file is None or not file.endswith(".jsonl"):
        return (data,)
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                prompt = None
            if not isinstance(prompt, str):
                raise UsageError(f'{file}, line {number}: expected an object with a text as its "prompt"')
            found.append(prompt.encode())
    if not found:
        raise UsageError(f'{file} holds no prompts; give one object per line, with a text as its "prompt"')
    return tuple(found)
