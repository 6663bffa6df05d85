"""The gate of every export: each graph is held against the torch model, or against golden outputs of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bltcli.bundle import GOLDEN, Bundle
from bltcli.checkpoint import Checkpoint
from bltcli.checkpoint.safetensors_map import map_safetensors
from bltcli.decoding.denoise import OfLogits
from bltcli.errors import ModelError
from bltcli.graphs import GraphName, Precision
from bltcli.pipeline import Pipeline, open_model
from bltcli.sampling import Sampler
from bltcli.vocab import IdArray, encode
from bltcli_engines.onnxruntime_engine import open_onnxruntime

if TYPE_CHECKING:
    from bltcli.nn import Blt

#: Largest difference allowed, relative to the largest value of a tensor (or 1, if that is larger); what the patcher
#: makes is held to that of fp32. Quantised graphs are held against a model with the same rounded weights, and multiply
#: with float32 there.
TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 1e-4, "int8": 1e-4, "int4": 1e-4}
#: As they run, with activations rounded to int8 block by block.
TOLERANCE_AS_RUN: Final = 0.1
#: Of golden outputs, which are those of the float32 model, as quantised graphs run.
TOLERANCE_GOLDEN: Final[dict[Precision, float]] = {**TOLERANCE, "int8": 0.1, "int4": 0.5}
_TEXT_BYTES: Final = 600  # longer than the windows of released models
_BATCH_BYTES: Final = 200  # of each text of a batch, whose graphs differ in the rows of attention alone
#: Bytes times weights where quantised weights are multiplied with float32: by far the slowest products, which a text of
#: 600 bytes would have take hours in a released model. The same graphs as they run are held to the whole text.
_FLOAT_PRODUCTS: Final = 3e10


@dataclass
class Parity:
    """What was compared and how far apart it was, relative, per tensor."""

    against: str
    tolerance: float
    differences: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    as_run: Parity | None = None  # of quantised graphs, with activations rounded to int8

    def compare(self, what: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Note the largest difference; NaN counts as infinite."""
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        difference = float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale
        difference = difference if np.isfinite(difference) else float("inf")
        self.differences[what] = max(self.differences.get(what, 0.0), difference)

    def require(self) -> Parity:
        for what, difference in self.differences.items():
            tolerance = TOLERANCE["fp32"] if what.startswith(("patcher", "entropy")) else self.tolerance
            if not difference <= tolerance:
                raise ModelError(
                    f"parity check failed: {what} differs from the {self.against} by {difference:.2e}, tolerance "
                    f"{tolerance:.0e}; this is a bug of the export or of the checkpoint, please report it"
                )
        return self

    def to_dict(self) -> dict[str, Any]:
        return {
            "checked": True,
            "against": self.against,
            "tolerance": self.tolerance,
            "calls": self.calls,
            "differences": self.differences,
            **({"as_run": self.as_run.to_dict()} if self.as_run else {}),
        }


def check_parity(bundle: Bundle, checkpoint: Checkpoint, *, rounded_to: str | None = None) -> Parity:
    """Hold `bundle` against its checkpoint. Golden outputs come first, so that the built-in model needs no torch; but
    they are those of float32 weights, so that quantised bundles prefer torch where it is installed.
    `rounded_to`: the dtype that the bundle's weights were rounded through. Raises ModelError beyond the tolerance."""
    parity = _check_plain(bundle, checkpoint, rounded_to)
    if bundle.device_paths != bundle.graph_paths:
        _check_choosing(bundle, parity)
    return parity


def _check_plain(bundle: Bundle, checkpoint: Checkpoint, rounded_to: str | None) -> Parity:
    quantised = bundle.precision in ("int8", "int4")
    without_torch = find_spec("torch") is None
    if (checkpoint.path / GOLDEN).is_file() and (without_torch or not quantised):
        return check_golden(bundle, checkpoint.path / GOLDEN)
    if without_torch:
        raise ModelError(
            "the parity check needs PyTorch: pip install 'bltcli[torch]', or export with --no-check "
            "(the manifest records it)"
        )
    if not quantised:
        return _check_torch(bundle, checkpoint, rounded_to, TOLERANCE[bundle.precision])
    parity = _check_torch(bundle, checkpoint, bundle.precision, TOLERANCE[bundle.precision], float_activations=True)
    parity.as_run = _check_torch(bundle, checkpoint, bundle.precision, TOLERANCE_AS_RUN)
    return parity


def check_golden(bundle: Bundle, file: Path) -> Parity:
    """Run the golden text of `file` through the bundle in uneven pieces and compare what all four graphs made of it."""
    golden = map_safetensors(file)
    parity = Parity("golden outputs", TOLERANCE_GOLDEN[bundle.precision])
    model = open_model(bundle, engine="ort-cpu")
    ids = golden["ids"].astype(np.int64)
    logits, entropy = [], []
    for piece in _pieces(ids):
        logits.append(model.extend([piece])[0, : len(piece)].copy())
        entropy.append(model.engines["patcher"].outputs["entropy"][0, : len(piece)].copy())
        parity.calls += 1
    parity.compare("entropy", np.concatenate(entropy), golden["entropy"])
    parity.compare("logits", np.concatenate(logits), golden["logits"])
    model.absorb([ids[:1]], peek=True)  # the bytes of the last patch, still open, are encoded with one more
    for name, engine in (("states", model.engines["encoder"]), ("cross_kv", model.engines["global"])):
        found = engine.buffers[f"past_{name}"].numpy()[0, 0]
        parity.compare(name, found[: len(golden[name])], golden[name])
    return parity.require()


def _check_choosing(bundle: Bundle, parity: Parity) -> None:
    """Hold the decoder that chooses bytes against the plain one, and what it finds against what the host would."""
    plain = open_model(bundle, engine="ort-cpu")
    runtime, engines = open_onnxruntime(bundle.device_specs, bundle.device_paths, bundle.weight_bytes)
    model = Pipeline(bundle.config, runtime, engines, bundle.tables())
    for piece in _pieces(sample_ids(min(_TEXT_BYTES // 2, bundle.config.max_bytes - 1), 2)):
        parity.compare("decoder logits, choosing", model.extend([piece]), plain.extend([piece]))
        found = model.engines["decoder"].outputs
        logits, of_logits = found["logits"][0], OfLogits(found["logits"])
        best = Sampler().choose(logits, *np.zeros((2, len(logits)), dtype=np.int64))
        parity.compare("decoder best", found["best"][0] != best, np.zeros(len(best)))
        parity.compare("decoder confidence", found["confidence"], of_logits.confidence)
        parity.compare("decoder certainty", found["entropy"], of_logits.entropy)
        parity.calls += 1
    parity.require()


def _check_torch(
    bundle: Bundle, checkpoint: Checkpoint, rounded_to: str | None, tolerance: float, *, float_activations: bool = False
) -> Parity:
    """Each form of the graphs for ONNX Runtime's CPU against torch. Memory: torch's weights and one form's."""
    from bltcli.nn.loading import load_blt
    from bltcli_export.twins import round_weights

    model = load_blt(checkpoint, tables=False)
    if rounded_to is not None:
        round_weights(model, rounded_to)
    parity = Parity("torch model", tolerance)
    for rows in (1, 2):
        _drive_twins(bundle, model, rows, parity, float_activations)
        gc.collect()  # a pipeline refers to itself, and holds the weights
    return parity.require()


def _drive_twins(bundle: Bundle, model: Blt, rows: int, parity: Parity, float_activations: bool) -> None:
    """Drive a pipeline whose engines run both sides on the same inputs and the same state: every call of every graph is
    compared on its own, over prompts, single bytes, uneven batches, rewinds and a window that slides."""
    from bltcli_export.twins import TwinEngine, TwinRuntime

    paths = bundle.batched_paths if rows > 1 else bundle.graph_paths
    _, engines = open_onnxruntime(
        bundle.specs, paths, bundle.weight_bytes, rows=rows, float_activations=float_activations
    )
    twins: dict[GraphName, TwinEngine] = {name: TwinEngine(engine, model, parity) for name, engine in engines.items()}
    pipeline = Pipeline(bundle.config, TwinRuntime(batched=rows > 1), twins, bundle.tables(), rows=rows)
    length = min(_TEXT_BYTES if rows == 1 else _BATCH_BYTES, bundle.config.max_bytes - 1)
    if float_activations:
        weights = sum(weight.numel() for weight in model.parameters() if not weight.is_meta)
        length = min(length, max(20, int(_FLOAT_PRODUCTS / weights)))
    texts = [sample_ids(length, seed) for seed in (0, 1)]
    for long, short in zip(_pieces(texts[0]), _pieces(texts[1], slow=True), strict=False):
        pipeline.extend([long, short][:rows])
        lengths = pipeline.lengths.copy()
        pipeline.extend([long[:3], short[:0]][:rows])
        pipeline.rewind(lengths)


def sample_ids(length: int, seed: int) -> IdArray:
    """Ids of a text of words, repetitions and noise, with BOS."""
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, rng.integers(2, 9)).tolist()) for _ in range(20)]
    text = b" ".join(words[i] for i in rng.integers(0, len(words), length))[: length * 3 // 4]
    return encode(text + rng.integers(0, 256, length, dtype=np.uint8).tobytes())[:length]


def _pieces(ids: IdArray, slow: bool = False) -> Iterator[IdArray]:
    """Uneven pieces of `ids`: prompts, single bytes, drafts."""
    sizes = (61, 1, 9, 2, 17) if slow else (128, 1, 1, 9, 2, 17)
    start = 0
    for size in cycle(sizes):
        if start >= len(ids):
            return
        yield ids[start : start + size]
        start += size
