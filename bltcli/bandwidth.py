"""The paper's cost model: gigabytes of weights read, at 16 bit and batch 1."""

from __future__ import annotations

from collections.abc import Mapping

BYTES_PER_PARAMETER = 2


def paper_gb(nfe: Mapping[str, float], parameters: Mapping[str, int]) -> float:
    """GB = 2 * (N_dec * P_dec + N_enc * (P_enc + P_glob)) / 1e9 (Fast BLT, cost of generation).

    N are passes after the prompt, P parameters per graph. As in the paper it leaves out the entropy model, hash tables,
    KV caches and the prompt. N_enc counts *global* passes: the paper runs the encoder and the global model together.
    """
    local = nfe["decoder"] * parameters["decoder"]
    return BYTES_PER_PARAMETER * (local + nfe["global"] * (parameters["encoder"] + parameters["global"])) / 1e9
