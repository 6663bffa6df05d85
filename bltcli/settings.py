"""Where options get values from besides the command line (file, environment), and the options every verb has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bltcli.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

DEBUG = "bltcli.debug"
VERBOSITY = "bltcli.verbosity"


def config_path() -> Path:
    """The user's configuration file, which need not exist."""
    return Path(click.get_app_dir("bltcli")) / "config.toml"


def load(ctx: click.Context, file: str | None) -> dict[str, Any]:
    """Defaults by verb and parameter, for click's default_map, from `file` or else from the user's own file."""
    path = Path(file) if file is not None else config_path()
    if file is None and not path.exists():
        return {}
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise UsageError(f"the configuration {path} is no valid TOML: {error}") from error
    assert isinstance(ctx.command, click.Group)
    return _defaults(ctx, ctx.command, tables, str(path))


def _defaults(ctx: click.Context, group: click.Group, tables: dict[str, Any], where: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for verb, table in tables.items():
        command = group.get_command(ctx, verb)
        if command is None:
            raise UsageError(f"{where}: there is no verb {verb!r}; the verbs are {', '.join(group.list_commands(ctx))}")
        if not isinstance(table, dict):
            raise UsageError(f"{where}: {verb} is {table!r}, expected a table [{verb}]")
        below = {name: entry for name, entry in table.items() if isinstance(entry, dict)}
        own = {name: entry for name, entry in table.items() if name not in below}
        defaults[verb] = _values(command, own if isinstance(command, click.Group) else table, f"{where}: {verb}")
        if isinstance(command, click.Group):
            defaults[verb] |= _defaults(ctx, command, below, f"{where}: {verb}")
    return defaults


def _values(command: click.Command, table: dict[str, Any], where: str) -> dict[str, Any]:
    options = {key(option): option for option in command.params if isinstance(option, click.Option)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        option = options.get(name.replace("_", "-"))
        if option is None:
            raise UsageError(f"{where}: there is no option {name!r}; the options are {', '.join(sorted(options))}")
        assert option.name is not None
        values[option.name] = _checked(option, value, f"{where}: {name}")
    return values


def key(option: click.Option) -> str:
    """An option's name in the configuration file: its longest flag without the dashes."""
    return max(option.opts, key=len).lstrip("-")


def _checked(option: click.Option, value: Any, where: str) -> Any:
    """`value` if TOML gave it the option's type; click checks the rest."""
    kinds: tuple[tuple[type, ...], str]
    if option.is_flag:
        kinds = (bool,), "true or false"
    elif option.count or isinstance(option.type, click.types.IntParamType):
        kinds = (int,), "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        kinds = (int, float), "a number"
    else:
        kinds = (str,), "a string"
    many = option.multiple and isinstance(value, list)
    for item in value if many else [value]:
        if type(item) not in kinds[0]:
            raise UsageError(f"{where} is {item!r}, expected {kinds[1]}" + " or a list" * option.multiple)
    return [value] if option.multiple and not many else value


def _remember(name: str, sign: int) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: int) -> None:
        if value:
            ctx.meta[name] = ctx.meta.get(name, 0) + sign * int(value)

    return callback


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember(DEBUG, 1),
    help="Show where in the program a failure happened.",
)  # fmt: skip
_quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_remember(VERBOSITY, -100),
    help="Say nothing on stderr but errors.",
)  # fmt: skip
_verbose_option = click.option(
    "-v", "--verbose", count=True, expose_value=False, callback=_remember(VERBOSITY, 1),
    help="Say on stderr what is being used.",
)  # fmt: skip


def verbosity_options(function: F) -> F:
    """--quiet, --verbose and --debug."""
    return _quiet_option(_verbose_option(debug_option(function)))


def debugging(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(DEBUG))


def verbosity() -> int:
    """Below 0 quiet, 0 normal, above 0 verbose."""
    ctx = click.get_current_context(silent=True)
    return int(ctx.meta.get(VERBOSITY, 0)) if ctx else 0
