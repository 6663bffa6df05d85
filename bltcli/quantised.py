"""Weight-only quantisation, int8 and int4: which weights, in which blocks, to which numbers. NumPy only.

Symmetric, round to nearest, no calibration data. A weight [outputs, inputs] is cut along its inputs into blocks; each
block of each output has one scale, its largest magnitude over 127 (int8) or 7 (int4). Without zero points: TensorRT
takes none, and they gain nothing at int8 (docs/precisions.md has what they would gain at int4).
"""

from __future__ import annotations

from typing import Final, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Quantised = Literal["int8", "int4"]
STEPS: Final[dict[Quantised, int]] = {"int8": 127, "int4": 7}  # of the scale, on each side of zero
DTYPES: Final = {"int8": np.dtype(np.int8), "int4": np.dtype(ml_dtypes.int4)}
#: Block lengths, the best first; a weight takes the first that divides its inputs. ONNX Runtime has kernels for these.
BLOCKS: Final = (128, 64, 32, 16)
SCALES: Final = "/scales"  # what the name of a weight's scales has after the weight's, in a graph


def block_of(name: str, shape: tuple[int, ...]) -> int | None:
    """Block length of the weight `name` [outputs, inputs]; None: it stays as it is. That goes for the entropy model,
    whose decisions are float32, embedding tables, of which a pass reads single rows, the decoder's head, which is
    small and makes the logits, norms, and inputs that no block length divides."""
    if len(shape) != 2 or name.startswith("patcher.") or "embed_tokens" in name or "hash_embedding" in name:
        return None
    if name == "decoder.lm_head.weight":
        return None
    return next((block for block in BLOCKS if shape[1] % block == 0), None)


def quantise(weight: FloatArray, block: int, kind: Quantised) -> tuple[NDArray[np.int8], FloatArray]:
    """Whole numbers int8 [outputs, inputs] within STEPS and float32 scales [outputs, inputs / block]."""
    blocks = weight.astype(np.float32, copy=False).reshape(len(weight), -1, block)
    steps = STEPS[kind]
    scales = np.maximum(blocks.max(-1), -blocks.min(-1)) / np.float32(steps)
    scales[scales == 0] = 1  # a block of zeros
    # a subnormal scale may round so far down that its largest weight needs more than `steps`
    numbers = np.clip(np.rint(blocks / scales[..., None]), -steps, steps).astype(np.int8)
    return numbers.reshape(weight.shape), scales


def dequantise(numbers: NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """Float32 [outputs, inputs] of what `quantise` returns."""
    outputs, count = scales.shape
    blocks = numbers.astype(np.float32).reshape(outputs, count, -1)
    return (blocks * scales[..., None]).reshape(numbers.shape)


def rounded(name: str, weight: FloatArray, kind: Quantised) -> FloatArray:
    """`weight` as a quantised bundle computes with it: what is not quantised comes back as it is."""
    block = block_of(name, weight.shape)
    return weight if block is None else dequantise(*quantise(weight, block, kind))
