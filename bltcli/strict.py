"""Dicts from JSON or TOML into frozen dataclasses, strictly: no unknown key, no missing key, no wrong type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from bltcli.errors import BltError

T = TypeVar("T")


def read(cls: type[T], table: Mapping[str, Any], where: str, error: type[BltError]) -> T:
    """`table` as the dataclass `cls`, nested ones included; raises `error`, naming the place after `where`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is always a dataclass here
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise error(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(fields)}")
    required = (n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING)
    missing = [n for n in required if n not in table]
    if missing:
        raise error(f"{where}: missing key {missing[0]!r}")
    return cls(**{name: _value(hints[name], value, f"{where}.{name}", error) for name, value in table.items()})


def _value(hint: Any, value: Any, where: str, error: type[BltError]) -> Any:
    """`value` as the annotated type; bool is no int here, and an int may stand for a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return read(hint, value, where, error)
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where, error)
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_value(arguments[0], v, f"{where}[{i}]", error) for i, v in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {key: _value(arguments[1], v, f"{where}.{key}", error) for key, v in value.items()}
    elif origin is Literal:
        if value in arguments:
            return value
    elif hint is float:
        if type(value) in (int, float):
            return float(value)
    elif type(value) is hint:
        return value
    raise error(f"{where} is {value!r}, expected {getattr(hint, '__name__', hint)}")
