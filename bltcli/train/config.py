"""What a training run is: frozen dataclasses read strictly from one TOML file; knows no torch."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal

from bltcli.config import ModelConfig
from bltcli.errors import BltError, UsageError
from bltcli.strict import read

SourceKind = Literal["pairs", "prose"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents. `pairs`: two line-aligned files NAME.SRC and NAME.TGT, NAME ending in `.SRC-TGT`;
    `prose`: text files whose paragraphs are parted by empty lines (or are one line each with `line_paragraphs`)."""

    name: str
    kind: SourceKind
    files: tuple[str, ...]  # under the data root; pairs: one, without the language suffix
    weight: float  # share of the bytes, relative to the other sources
    join: int = 1  # up to so many pairs or consecutive paragraphs make one document
    line_paragraphs: bool = False
    drop: tuple[str, ...] = ()  # prose: paragraphs that hold one of these are left out

    def __post_init__(self) -> None:
        if not self.files or (self.kind == "pairs" and len(self.files) != 1):
            raise UsageError(f"source {self.name}: files has {len(self.files)} entries; pairs take 1, prose 1 or more")
        if self.weight <= 0 or self.join < 1:
            raise UsageError(f"source {self.name}: weight {self.weight} and join {self.join} must be positive")
        if self.kind == "pairs" and len(self.languages) != 2:
            raise UsageError(f"source {self.name}: {self.files[0]!r} does not end in .SRC-TGT")

    @property
    def languages(self) -> list[str]:
        """Codes of source and target of pairs."""
        return Path(self.files[0]).suffix[1:].split("-")

    @property
    def paths(self) -> list[str]:
        """The files themselves."""
        return [f"{self.files[0]}.{code}" for code in self.languages] if self.kind == "pairs" else list(self.files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which documents, and how they are packed into batches."""

    root: str = ""  # folder of the files; empty: given on the command line or by BLTCLI_DATA
    seed: int
    row_bytes: int  # ids per packed row, BOS and EOS included
    batch_rows: int
    dev_modulo: int = 200  # one text in so many is held out, by a hash of the text
    exclude: tuple[str, ...] = ()  # files under the root: no text is used that repeats a line of them, see `Overlap`
    sources: tuple[SourceConfig, ...]

    def __post_init__(self) -> None:
        if self.row_bytes < 8 or self.batch_rows < 1 or self.dev_modulo < 2 or not self.sources:
            raise UsageError("data: needs row_bytes >= 8, batch_rows >= 1, dev_modulo >= 2 and at least one source")

    @property
    def paths(self) -> list[str]:
        """Every file that is read, under the root."""
        return sorted({*self.exclude, *(path for source in self.sources for path in source.paths)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One run of the loop: linear warm-up to `learning_rate`, then a cosine down to `final_fraction` of it."""

    steps: int
    learning_rate: float
    warmup_steps: int
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup_steps < 0 or self.learning_rate <= 0:
            raise UsageError("phase: needs steps >= 1, warmup_steps >= 0 and a positive learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW, or Muon beside it, and how a step is computed."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # of linear weights; embeddings and norms are not decayed
    muon: bool = False  # Muon for linear weights but the output's; beta1, beta2 and eps are AdamW's alone
    clip: float = 1.0
    accumulate: int = 1  # batches per step
    bf16: bool = False  # autocast of the trained part; the frozen patcher always runs in float32
    compile: bool = False  # torch.compile the trained parts of the second phase; needs a C++ compiler
    save_every: int = 200  # steps between resumable checkpoints
    log_every: int = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Block diffusion beside next-byte prediction, in the second phase."""

    sizes: tuple[int, ...]  # one is drawn per batch; a single size reproduces one model per block size
    per_row: int  # blocks of the largest size drawn per packed row, of smaller sizes as many more; see `make_blocks`
    random_starts: float = 0.0  # share of rows whose blocks start anywhere, as under verification
    suffix: float = 0.0  # share of blocks of which the last bytes are masked, not any
    weight: float = 1.0  # of the loss of masked blocks beside that of next bytes

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.per_row < 1:
            raise UsageError("blocks: needs sizes and per_row of at least 1")
        if not 0 <= self.random_starts <= 1 or not 0 <= self.suffix <= 1:
            raise UsageError("blocks: needs random_starts and suffix from 0 to 1")
        if not self.weight > 0:
            raise UsageError(f"blocks.weight is {self.weight}; use a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole recipe. The model's patcher threshold is calibrated so that held-out patches average
    `bytes_per_patch`; its figure in the recipe is replaced."""

    data: DataConfig
    model: ModelConfig
    bytes_per_patch: float
    patcher: PhaseConfig
    blt: PhaseConfig
    optimiser: OptimiserConfig
    blocks: BlocksConfig | None = None
    prompt_weight: float = 1.0  # in the loss of the second phase: of the bytes that a translation is asked with
    licence: dict[str, str] = dataclasses.field(default_factory=dict)  # these two go into the checkpoint as they are
    prompt_format: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        largest = max(self.blocks.sizes) if self.blocks else 0
        if self.model.block_size != largest:
            raise UsageError(f"model.block_size is {self.model.block_size}, the largest block trained is {largest}")
        if not 0 <= self.prompt_weight <= 1:
            raise UsageError(f"prompt_weight is {self.prompt_weight}; use 0 to 1")
        rows = self.data.row_bytes
        for name, stack in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            if stack.window is None or stack.window > rows:
                raise UsageError(
                    f"model.{name}.window is {stack.window}, rows have {rows} bytes: longer texts would be read over "
                    f"distances that no row has, and fall apart; use at most {rows}"
                )


def load_config(path: Path) -> TrainConfig:
    """Read a recipe; unknown or missing keys and wrong types raise UsageError. With `base = "OTHER.toml"`, a file
    beside it (which may have a base itself), only what differs from that recipe is written down: tables are merged key
    by key."""
    try:
        table = _load_table(path)
        model = ModelConfig.from_dict(_with_absent(table.pop("model", {})))
        return read(TrainConfig, table | {"model": model}, "recipe", UsageError)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, BltError) as error:
        raise UsageError(f"{path}: {error}") from error


def _load_table(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str) or path.parent / base in (*above, path):
        raise UsageError(f"base is {base!r}; it must name another recipe, whose own base is none of those above it")
    return _merged(_load_table(path.parent / base, (*above, path)), table)


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in table.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | table | both


def _with_absent(model: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent window or max_patch_length means none, an absent threshold that it is calibrated."""
    absent = {"patcher": {"window": None, "max_patch_length": None, "threshold_nats": 0.0}}
    return {k: absent.get(k, {"window": None}) | v if isinstance(v, dict) else v for k, v in model.items()}
