"""The command line: a group that imports a verb when it is asked for, and one exit code per way to end."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from bltcli import __version__, settings, streams
from bltcli.errors import BltError

INTERRUPTED = 130
READER_GONE = 141
COMPLETE = "_BLTCLI_COMPLETE"
#: Packages that only some verbs need -> the extra of bltcli that brings them.
EXTRAS = {"onnxruntime": "cpu", "torch": "torch", "huggingface_hub": "hub", "sacrebleu": "eval", "lm_eval": "eval",
          "datasets": "eval", "ray": "ray"}  # fmt: skip

#: Verb -> the line that `bltcli --help` shows, so that listing the verbs imports none of them.
VERBS = {
    "generate": "Continue a prompt, byte by byte or many bytes per pass.",
    "replay": "Watch a generation that was traced.",
    "translate": "Translate lines: as many out as in, in order.",
    "batch": "Continue many prompts: records in, records out, in order.",
    "patches": "Show how the model splits a text into patches.",
    "export": "Export a checkpoint to ONNX graphs (a bundle).",
    "build": "Build TensorRT engines for the graphs of a bundle.",
    "convert": "Rewrite a checkpoint of Meta or Hugging Face in bltcli's own format.",
    "inspect": "Show what a bundle or a checkpoint holds.",
    "train": "Train a model from a TOML file.",
    "eval": "Score a model: translation, code, likelihood, diversity.",
    "verify": "Prove a bundle on this machine: known answers, exactness, PyTorch.",
    "bench": "Measure methods side by side; compare two such reports.",
    "tune": "Find the fastest method for this machine and text; --method auto uses it.",
    "models": "List, locate and check the models on this machine.",
    "doctor": "Check engines, versions and the built-in model on this machine.",
}


class LazyGroup(click.Group):
    """Verbs live in bltcli/commands/<verb>.py, each as a click object named `command`. A verb that is a group in a
    folder of its own derives from this one."""

    verbs = VERBS
    package = "bltcli.commands"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command = importlib.import_module(f"{self.package}.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.name, command.short_help = cmd_name, self.verbs[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            raise click.UsageError(f"there is no verb {args[0]!r}; the verbs are {', '.join(self.verbs)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(self.verbs.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


@click.command(
    cls=LazyGroup,
    no_args_is_help=True,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"auto_envvar_prefix": "BLTCLI", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Every option can also be set in the environment and in a configuration file:
  BLTCLI_GENERATE_MAX_BYTES=100      BLTCLI_<VERB>_<OPTION>, dashes as underscores
  [generate]                         config.toml: one table per verb,
  max-bytes = 100                    one key per option
The command line wins over the environment, the environment over the file. On
Linux the file is ~/.config/bltcli/config.toml. BLTCLI_CACHE_DIR names another
folder for what bltcli keeps.

\b
Shell completion, for the shell you use:
  eval "$(_BLTCLI_COMPLETE=bash_source bltcli)"          in ~/.bashrc
  eval "$(_BLTCLI_COMPLETE=zsh_source bltcli)"           in ~/.zshrc
  _BLTCLI_COMPLETE=fish_source bltcli | source           in config.fish

\b
Exit codes:
  0 done                         4 finished, but some records failed
  1 unexpected failure           5 verification failed
  2 wrong usage                  130 interrupted (the output so far is kept)
  3 bad or refused model,        141 the reader of stdout went away
    bundle or engine

\b
Examples:
  printf 'Once upon a time' | bltcli generate -n 80
  bltcli generate --help
  bltcli doctor""",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Show the versions of bltcli and of what it runs on, and exit.")  # fmt: skip
@click.option("--config", metavar="FILE", type=click.Path(), default=None,
              help="Read defaults from this TOML file instead of the user's config.toml.")  # fmt: skip
@settings.debug_option
@click.pass_context
def group(ctx: click.Context, config: str | None) -> None:
    """Decode Byte Latent Transformers: text in, text out, many bytes per pass, the same bytes as one at a time."""
    ctx.default_map = settings.load(ctx, config)


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command line `args`; every way to end becomes an exit code, with at most one line on stderr."""
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, "bltcli", COMPLETE, instruction)
    ctx: click.Context | None = None
    try:
        ctx = group.make_context("bltcli", args)
        with ctx:
            code = group.invoke(ctx)
        return code if type(code) is int else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return READER_GONE
    except Exception as error:
        return _explain(error, ctx)
    finally:
        streams.settle()


def _explain(error: Exception, ctx: click.Context | None) -> int:
    """Say on one line what went wrong; with --debug, where."""
    if ctx is not None and settings.debugging(ctx):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "bltcli"
        line, code = f"{_sentence(error.format_message())} (see {path} --help)", error.exit_code
    elif isinstance(error, click.ClickException):
        line, code = error.format_message(), error.exit_code
    elif isinstance(error, BltError):
        line, code = str(error), error.exit_code
    elif isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        line, code = f"{error.name} is not installed; pip install 'bltcli[{EXTRAS[error.name]}]'", 3
    elif isinstance(error, OSError) and error.strerror:
        line, code = f"{error.strerror}: {error.filename}" if error.filename else error.strerror, 1
    else:
        line, code = f"unexpected {type(error).__name__}: {error}; run with --debug", 1
    streams.complain(" ".join(line.split()))
    return code


def _sentence(text: str) -> str:
    return text.rstrip().removesuffix(".")


def version_text() -> str:
    """Version, git revision when run from a checkout, and the versions of what runs the graphs; imports none of it."""
    from importlib.metadata import PackageNotFoundError, version

    revision = git_revision(Path(__file__).resolve().parents[1])
    lines = [f"bltcli {__version__}" + (f" (revision {revision[:12]})" if revision else "")]
    lines.append(f"python {'.'.join(map(str, sys.version_info[:3]))}")
    for package in ("numpy", "onnxruntime", "onnxruntime-gpu", "torch"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            if package in ("numpy", "onnxruntime"):
                lines.append(f"{package} not installed")
    return "\n".join(lines)


def git_revision(root: Path) -> str | None:
    """The commit that the checkout at `root` is on, read from its files; None when it is no checkout."""
    try:
        git = root / ".git"
        if git.is_file():  # a linked work tree
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / "commondir"
        base = git / common.read_text().strip() if common.exists() else git
        if (base / name).exists():
            return (base / name).read_text().strip()
        packed = (base / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None
