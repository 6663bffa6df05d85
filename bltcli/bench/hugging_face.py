"""Hugging Face's own BLT on the same weights, as one more row of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from bltcli.bench.measure import Task, Turn
from bltcli.errors import ModelError, UsageError
from bltcli.vocab import EOS, NEVER_GENERATED, OFFSET, encode


class HuggingFace:
    """`BltForCausalLM.generate` in float32, greedy, without a cache: with one its output is not that of the model."""

    name = "hugging face"

    def __init__(self, folder: Path, manifest: Mapping[str, Any], task: Task) -> None:
        """UsageError for a task that it is not set up for; ModelError for other weights than the bundle's, or where
        torch or transformers is missing."""
        if task.sampler.temperature > 0:
            raise UsageError("--baseline hf is greedy; leave out --temperature")
        from bltcli.checkpoint import open_checkpoint

        found, wanted = open_checkpoint(folder).sha256, manifest["source"]["sha256"]
        if found != wanted:
            raise ModelError(
                f"{folder} holds other weights ({found[:12]}) than the bundle was exported from ({wanted[:12]}); "
                f"export it with `bltcli export {folder} -o BUNDLE`"
            )
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ModelError(f"--baseline hf needs torch and transformers: {error}; pip install them") from error
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch, self.task = torch, task
        self.model: Any = transformers.BltForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._suppressed = sorted({*NEVER_GENERATED, EOS} if task.sampler.ignore_eos else NEVER_GENERATED)

    def run(self) -> Turn:
        began = perf_counter()
        texts = [self._continue(prompt) for prompt in self.task.prompts]
        return Turn(texts, perf_counter() - began)

    def _continue(self, prompt: bytes) -> bytes:
        ids = self._torch.from_numpy(encode(prompt)[None])
        with self._torch.inference_mode():
            out = self.model.generate(
                ids,
                max_new_tokens=self.task.stop.max_bytes,
                do_sample=False,
                use_cache=False,
                eos_token_id=EOS,
                suppress_tokens=self._suppressed,
            )
        new = out[0, ids.shape[1] :].tolist()
        return bytes(i - OFFSET for i in new if i >= OFFSET)
