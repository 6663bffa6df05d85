"""Writes the golden outputs of a checkpoint: what the torch model makes of one short text.

    python -m bltcli_export.golden CHECKPOINT

They lie beside the weights, so that an export of the built-in model can be checked without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np

from bltcli.bundle import GOLDEN
from bltcli.checkpoint import open_checkpoint
from bltcli.checkpoint.safetensors_map import write_safetensors
from bltcli.vocab import encode

#: Languages, markup, digits, a four-byte character and bytes that are no UTF-8.
TEXT: Final = (
    "en>fr\nOpen the file, then press Enter.\nOuvrez le fichier, puis appuyez sur Entrée.\n"
    "Grüße! 3.14 [x](y) \U0001f600\n"
).encode() + b"\xff\xfe\x00 the the the the the the end"


def write_golden(folder: Path) -> Path:
    """Write ids int64 [N], and float32 entropy [N], states [N, h], cross_kv [M, V], logits [N, 260]."""
    import torch

    from bltcli.nn.loading import load_blt

    model = load_blt(open_checkpoint(folder))
    layout = model.layout(encode(TEXT)[None])
    with torch.no_grad():
        states, latents = model.encode(layout)
        cross_kv = model.decoder.cross_kv(latents)
        logits = model.decode(layout, states, latents)
    closed = int(layout.closes.sum())
    arrays = {
        "ids": layout.ids[0],
        "entropy": model.entropies(layout.ids)[0].numpy(),
        "states": states[0].numpy(),
        "cross_kv": cross_kv[0, :closed].numpy(),
        "logits": logits[0].numpy(),
    }
    streams = {name: (np.dtype(array.dtype), array.shape, [array]) for name, array in arrays.items()}
    write_safetensors(folder / GOLDEN, streams)
    return folder / GOLDEN


if __name__ == "__main__":
    print(write_golden(Path(sys.argv[1])))
