"""PyTorch as an engine: the reference model behind the graphs' own inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bltcli.checkpoint.names import HOST_TABLES, reader_of
from bltcli.config import ModelConfig
from bltcli.errors import ModelError
from bltcli.graphs import GraphName, GraphSpec
from bltcli.nn import Blt
from bltcli.nn.layers import Cache, scatter
from bltcli.nn.patcher import entropy_nats
from bltcli_engines.onnx_weights import read_weights
from bltcli_engines.protocol import Arrays, Buffer, Engine

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchBuffer:
    """State in a torch tensor."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: str, device: str = "cpu") -> None:
        self.tensor = torch.zeros(shape, dtype=DTYPES[dtype], device=device)

    @property
    def capacity(self) -> int:
        return self.tensor.shape[2]

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def resize(self, capacity: int) -> None:
        b, heads, old, width = self.tensor.shape
        new, kept = self.tensor.new_zeros(b, heads, capacity, width), min(old, capacity)
        new[:, :, :kept] = self.tensor[:, :, :kept]
        self.tensor = new

    def shift(self, row: int, slots: int) -> None:
        self.tensor[row, :, : self.capacity - slots] = self.tensor[row, :, slots:].clone()

    def adopt(self, row: int, source: Buffer, source_row: int, slots: int) -> None:
        assert isinstance(source, TorchBuffer)
        self.tensor[row, :, :slots] = source.tensor[source_row, :, :slots]

    def numpy(self) -> NDArray[Any]:
        return self.tensor.float().cpu().numpy()


class TorchEngine:
    """One graph of a `Blt` model, with the I/O of its ONNX twin."""

    def __init__(self, spec: GraphSpec, model: Blt) -> None:
        self.spec, self.model = spec, model
        self.weight_bytes = sum(
            p.nbytes for name, p in model.named_parameters() if reader_of(name) == spec.name and "embed" not in name
        )
        self.dtype = model.decoder.lm_head.weight.dtype
        self._buffers: dict[str, TorchBuffer] = {}

    def bind(self, buffers: Mapping[str, Buffer]) -> None:
        for name, buffer in buffers.items():
            assert isinstance(buffer, TorchBuffer)
            self._buffers[name] = buffer

    @property
    def kv_bytes(self) -> int:
        return sum(b.nbytes for name, b in self._buffers.items() if name.startswith("past_key_values"))

    def fork(self) -> TorchEngine:
        return TorchEngine(self.spec, self.model)

    @torch.inference_mode()
    def run(self, feeds: Arrays) -> Arrays:
        device = self.model.decoder.lm_head.weight.device
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in feeds.items()}
        tensors |= {name: buffer.tensor for name, buffer in self._buffers.items()}
        return {name: value.float().cpu().numpy() for name, value in self._outputs(tensors).items()}

    def _outputs(self, t: dict[str, Tensor]) -> dict[str, Tensor]:
        layers = sum(s.name.endswith(".key") for s in self.spec.inputs)
        pairs = [(t[f"past_key_values.{i}.key"], t[f"past_key_values.{i}.value"]) for i in range(layers)]
        cache = Cache(pairs, t["write_indices"])
        bias = t["attn_bias"].to(pairs[0][0].dtype)
        positions = t["position_ids"]
        if self.spec.name == "patcher":
            return {"entropy": entropy_nats(self.model.patcher(t["ids"], positions, bias, cache))}
        if self.spec.name == "encoder":
            states = self.model.encoder(t["embeds"].to(self.dtype), positions, bias, cache)
            scatter(t["past_states"], states[:, None], t["write_indices"])
            return {}
        if self.spec.name == "global":
            latents = self.model.global_model(
                t["states"][:, 0], t["patch_index"], t["patch_len"], positions, bias, cache
            )
            scatter(t["past_cross_kv"], self.model.decoder.cross_kv(latents)[:, None], t["latent_write_indices"])
            return {}
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        x = t["ids"] if self.model.decoder.lookup else t["states"][:, 0][rows, t["state_index"]]
        return {"logits": self.model.decoder(x, t["cross_kv"][:, 0], t["latent_index"], positions, bias, cache)}


class TorchRuntime:
    """PyTorch: no promise that a row's value is bitwise independent of its call."""

    row_multiple = 1
    pairs_texts = False
    promised = False
    slot_step = 128

    def __init__(self, device: str) -> None:
        self.device = device
        self.name = "torch" if device == "cpu" else f"torch-{device}"

    def slots(self, axis: str) -> int:
        return 0

    def buffer(self, shape: tuple[int, int, int, int], dtype: str) -> TorchBuffer:
        return TorchBuffer(shape, dtype, self.device)


def open_torch(
    config: ModelConfig,
    specs: Mapping[GraphName, GraphSpec],
    paths: Mapping[GraphName, Path],
    threads: int = 0,
    device: str = "cpu",
) -> tuple[TorchRuntime, dict[GraphName, Engine]]:
    """All graphs as torch modules on `device` ("cpu", "cuda"), with the weights that lie in the ONNX files. ModelError
    where torch has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"torch {torch.__version__} finds no GPU here; use --engine torch")
    if threads:
        torch.set_num_threads(threads)
    with torch.device("meta"):
        model = Blt(config)
    state = {}
    for name, array in read_weights(config, paths).items():
        bits = array.view(np.int16) if array.dtype.name == "bfloat16" else array
        tensor = torch.from_numpy(np.array(bits)).to(device)  # a copy: the file is mapped read-only
        state[name] = tensor.view(torch.bfloat16) if array.dtype.name == "bfloat16" else tensor
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected
    assert set(missing) == set(HOST_TABLES.values())
    engines: dict[GraphName, Engine] = {name: TorchEngine(spec, model.eval()) for name, spec in specs.items()}
    return TorchRuntime(device), engines
