"""The options of every verb that generates: which method, how bytes are drawn. Imports click and nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import click

from bltcli.commands import options

if TYPE_CHECKING:
    from bltcli.decoding import MethodOptions
    from bltcli.sampling import Sampler

METHODS: Final = ("ar", "blt-s", "blt-d", "blt-dv", "blt-h", "auto")
COMMITS: Final = ("block", "patches", "sure")
UNMASK: Final = ("one-step", "confidence", "prefix", "entropy", "entropy-max")


class DraftBytes(click.ParamType[int | Literal["auto"]]):
    """A number of bytes, or "auto"."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["auto"]:
        try:
            return "auto" if value == "auto" else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'auto'", param, ctx)


method_options = options(
    click.option("--method", type=click.Choice(METHODS), default="blt-s", show_default=True,
                 help="ar: one byte per pass. blt-s: the model drafts bytes with its small decoder and keeps those "
                      "that the full model confirms; the same bytes in fewer passes. blt-dv: as blt-s, with the bytes "
                      "of a block drafted together. blt-d: whole blocks unverified, faster and not the same bytes. "
                      "blt-h: each pass also guesses what comes next; the next one verifies what is not sure. The "
                      "last three need a model trained on blocks. auto: the bytes of ar, drafted as pays best on this "
                      "machine."),
    click.option("-k", "--draft-bytes", type=DraftBytes(), default="auto", show_default=True, metavar="K|auto",
                 help="Bytes drafted per round of blt-s, 1 to 64; auto follows what is kept and what it costs."),
    click.option("--block", type=int, default=None, metavar="B",
                 help="Bytes per block of blt-d, blt-dv, blt-h.  [default: as many as the model was trained with; at "
                      "most 4 of blt-h and --commit sure]"),
    click.option("--unmask", type=click.Choice(UNMASK), default=None,
                 help="Which bytes of a block are settled per pass. one-step: all. confidence: those likelier than "
                      "--alpha. prefix: of those, the ones before the first that is not. entropy: the surest, up to "
                      "--gamma nats together; entropy-max: the last of them not counted.  [default: one-step for "
                      "blt-dv, else confidence]"),
    click.option("--alpha", type=float, default=None,
                 help="Probability for --unmask confidence and prefix.  [default: 0.7 for blt-d, else 0.3]"),
    click.option("--gamma", type=float, default=None,
                 help="Nats for --unmask entropy.  [default: 1.5 for blt-dv, else 1.0]"),
    click.option("--commit", type=click.Choice(COMMITS), default="block", show_default=True,
                 help="How much of a block blt-d keeps. block: all. patches: what ends with its last patch, so that "
                      "the next block starts at a patch. sure: the next byte, as ar chooses it, and those after it "
                      "that one pass settles; the nearer --alpha is to 1, the nearer to ar."),
    click.option("--trust", type=float, default=0.9, show_default=True,
                 help="blt-h commits guesses unverified as long as the likeliest byte of each has more than this "
                      "probability; with 1 it writes the bytes of ar."),
    click.option("--ngram-draft", is_flag=True,
                 help="Also draft bytes that followed the same text earlier, in the prompt or the output; not for "
                      "blt-d."),
)  # fmt: skip
sampling_options = options(
    click.option("--temperature", type=float, default=0.0, show_default=True,
                 help="0 takes the likeliest byte; higher draws more freely."),
    click.option("--top-p", type=float, default=1.0, show_default=True,
                 help="Draw only from the likeliest bytes that hold this share of the probability."),
    click.option("--top-k", type=int, default=0, show_default=True,
                 help="Draw only from this many of the likeliest bytes; 0 for all."),
    click.option("--min-p", type=float, default=0.0, show_default=True,
                 help="Draw only bytes at least this likely, as a share of the likeliest one's probability."),
    click.option("--seed", type=int, default=0, show_default=True,
                 help="The same seed draws the same bytes, under every method that verifies."),
    click.option("--ignore-eos", is_flag=True, help="Do not let the model end the text."),
)  # fmt: skip
exact_option = click.option(
    "--exact/--no-exact", default=True, show_default=True,
    help="--no-exact skips the padding that makes methods agree to the last bit: faster, and a near tie may then come "
         "out differently under another method.",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), default=0, show_default=True,
    help="Processor threads; 0 lets the engine choose.",
)  # fmt: skip


def take_method(values: dict[str, Any]) -> MethodOptions:
    """Take the values of `method_options` out of a verb's. UsageError for what no method accepts."""
    from bltcli.decoding import MethodOptions

    names = ("method", "draft_bytes", "block", "unmask", "alpha", "gamma", "commit", "trust", "ngram_draft")
    return MethodOptions(**{name: values.pop(name) for name in names})


def take_sampler(values: dict[str, Any]) -> Sampler:
    """Take the values of `sampling_options` out of a verb's. UsageError for a number out of range."""
    from bltcli.sampling import Sampler

    names = ("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos")
    return Sampler(**{name: values.pop(name) for name in names})
