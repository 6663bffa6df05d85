"""The decoding methods: WHAT is generated and in what order, over anything that implements `ByteModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bltcli.decoding.autoregressive import Autoregressive
from bltcli.decoding.block_diffusion import COMMITS, BlockDiffusion, Commit
from bltcli.decoding.copying import Copies
from bltcli.decoding.denoise import Unmask, make_unmask
from bltcli.decoding.diffusion_verify import DiffusionVerify
from bltcli.decoding.draft_length import AdaptiveLength, FixedLength
from bltcli.decoding.drafting import Drafting
from bltcli.decoding.hybrid import Hybrid
from bltcli.decoding.protocol import ByteModel, DecodingMethod
from bltcli.decoding.self_speculation import SelfSpeculation
from bltcli.errors import ModelError, UsageError

#: Every method by its name on the command line; "auto" is what pays (`MethodOptions.resolved`).
METHODS: Final = ("ar", "blt-s", "blt-d", "blt-dv", "blt-h", "auto")
#: Methods whose text is that of `ar` whatever their options, see `MethodOptions.verified`.
EXACT_METHODS: Final = ("ar", "blt-s", "blt-dv", "auto")
MAX_DRAFT_BYTES: Final = 64
#: Of a block that has one pass only few bytes are ever kept, and all its rows are computed.
ONE_PASS_BLOCK: Final = 4
_BLOCK_METHODS: Final = ("blt-d", "blt-dv", "blt-h")
#: What the paper finds best for each, blt-h apart: rule, alpha, gamma.
_DEFAULTS: Final = {
    "blt-d": ("confidence", 0.7, 1.0),
    "blt-dv": ("one-step", 0.3, 1.5),
    "blt-h": ("confidence", 0.3, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What the command line says of a method; None stands for the method's own default.

    UsageError for an unknown name or a number out of range.
    """

    method: str = "blt-s"
    draft_bytes: int | Literal["auto"] = "auto"  # of blt-s
    block: int | None = None  # default: as large as was trained, at most ONE_PASS_BLOCK where a round is one pass
    unmask: str | None = None
    alpha: float | None = None  # of --unmask confidence and prefix
    gamma: float | None = None  # of --unmask entropy
    commit: Commit = "block"  # of blt-d
    trust: float = 0.9  # of blt-h
    ngram_draft: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method is {self.method!r}; use one of {', '.join(METHODS)}")
        k = self.draft_bytes
        if k != "auto" and not 1 <= k <= MAX_DRAFT_BYTES:
            raise UsageError(f"--draft-bytes is {k}; use 1 to {MAX_DRAFT_BYTES}, or auto")
        if self.commit not in COMMITS:
            raise UsageError(f"--commit is {self.commit!r}; use one of {', '.join(COMMITS)}")
        if not 0 <= self.trust <= 1:
            raise UsageError(f"--trust is {self.trust}; use a probability from 0 to 1")
        if self.ngram_draft and self.method == "blt-d":
            raise UsageError("--ngram-draft needs a method that verifies; blt-d does not, use blt-dv or blt-h")
        self.rule()

    @property
    def verified(self) -> bool:
        """Whether the text is that of `ar`, byte for byte; of "auto" unless it was tuned under a bound of quality."""
        return self.method in EXACT_METHODS or (self.method == "blt-h" and self.trust == 1)

    def rule(self) -> Unmask:
        """The rule by which blocks are unmasked."""
        return make_unmask(*self._unmask())

    def _unmask(self) -> tuple[str, float, float]:
        unmask, alpha, gamma = _DEFAULTS.get(self.method, _DEFAULTS["blt-dv"])
        return (
            unmask if self.unmask is None else self.unmask,
            alpha if self.alpha is None else self.alpha,
            gamma if self.gamma is None else self.gamma,
        )

    def _block(self, trained: int) -> int:
        if self.block is not None:
            return self.block
        one_pass = self.method == "blt-h" or (self.method == "blt-d" and self.commit == "sure")
        return min(trained, ONE_PASS_BLOCK) if one_pass else trained

    def settings(self, trained_block: int) -> dict[str, object]:
        """The options by name, None where the method does not use one, or commits blocks as the paper does;
        `trained_block` is the model's."""
        blocks, (unmask, alpha, gamma) = self.method in _BLOCK_METHODS, self._unmask()
        return {
            "method": self.method,
            "k": {"blt-s": self.draft_bytes, "auto": "auto"}.get(self.method),
            "block": self._block(trained_block) if blocks else None,
            "unmask": unmask if blocks else None,
            "alpha": alpha if blocks and unmask in ("confidence", "prefix") else None,
            "gamma": gamma if blocks and unmask.startswith("entropy") else None,
            "commit": self.commit if self.method == "blt-d" and self.commit != "block" else None,
            "trust": self.trust if self.method == "blt-h" else None,
            "ngram_draft": self.ngram_draft or self.method == "auto",
        }

    def resolved(self, model: ByteModel) -> MethodOptions:
        """These options, or what "auto" stands for: what `bltcli tune` found for this model, engine and machine, else
        blt-s with an adaptive draft length and, for a text alone, n-gram drafts: in a batch each text would have as
        many rows as the longest copy."""
        if self.method != "auto":
            return self
        tuned: MethodOptions | None = getattr(model, "tuned", None)
        return tuned or MethodOptions(method="blt-s", draft_bytes="auto", ngram_draft=len(model.lengths) == 1)

    def make(self, model: ByteModel) -> DecodingMethod:
        """The method over `model`. UsageError for a block larger than was trained; ModelError when the model was not
        trained on blocks at all."""
        if self.method == "auto":
            return self.resolved(model).make(model)
        copies = Copies() if self.ngram_draft else None
        if self.method == "ar":
            return Autoregressive(model, Drafting(FixedLength(0), copies))
        if self.method == "blt-s":
            length = AdaptiveLength() if self.draft_bytes == "auto" else FixedLength(self.draft_bytes)
            return SelfSpeculation(model, Drafting(length, copies))
        block = _checked_block(self.method, model.block_size, self._block(model.block_size))
        if self.method == "blt-d":
            return BlockDiffusion(model, block, self.rule(), commit=self.commit)
        drafting = Drafting(FixedLength(block), copies)
        if self.method == "blt-dv":
            return DiffusionVerify(model, drafting, self.rule())
        return Hybrid(model, drafting, self.rule(), self.trust, block)


def _checked_block(method: str, trained: int, block: int) -> int:
    if not trained:
        raise ModelError(f"this model was trained on next bytes only; {method} needs one trained on blocks, use blt-s")
    if block < 1:
        raise UsageError(f"--block is {block}; use 1 to {trained}")
    if block > trained:
        raise UsageError(f"--block {block} exceeds the {trained} this model was trained with; use --block {trained}")
    return block
