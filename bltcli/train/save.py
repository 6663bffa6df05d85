"""Write a checkpoint in this project's own form: config.json and model.safetensors; reading is bltcli.checkpoint's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bltcli.nn import Blt

FORMAT = "bltcli-checkpoint"
FORMAT_VERSION = 1
PROMPT_FORMAT = {
    "translation": "SRC>TGT\\n<source text>\\n  with SRC>TGT one of en>fr, fr>en, en>de, de>en; ends with EOS",
    "prose": "English text, no tag",
}


def save_checkpoint(model: Blt, folder: Path, *, licence: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write `folder`, all weights in bfloat16. Each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    weights = folder / "model.safetensors.part"
    save_file(tensors, weights, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "licence": dict(licence),
        "prompt_format": PROMPT_FORMAT,
        "training": dict(training),
    }
    text = folder / "config.json.part"
    text.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(weights, folder / "model.safetensors")
    os.replace(text, folder / "config.json")
