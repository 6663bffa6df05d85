"""The inputs and outputs of the four graphs, declared once; knows no engine and no weights.

    patcher   ids                                   -> entropy
    encoder   embeds                 past_states    -> present_states
    global    states, patch_index..  past_cross_kv  -> present_cross_kv
    decoder   ids | states, cross_kv                -> logits

A decoder that looks ids up has a second form for devices, which chooses bytes itself (`choosing_spec`).

Every `past_*` input and its `present_*` output are one buffer, updated in place. Axes: `batch` records, `rows` byte
rows of this call, `slots` byte slots of the buffers, `patches` patches closed in this call, `patch_slots` patch slots,
`patch_bytes` bytes of the longest of those patches, `latent_slots` those of latents that bytes may still read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bltcli.config import ModelConfig, StackConfig
from bltcli.vocab import OUTPUT_IDS

#: int8 and int4: weights alone (`bltcli.quantised`), all else float32.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
GraphName = Literal["patcher", "encoder", "global", "decoder"]
GRAPHS: Final[tuple[GraphName, ...]] = ("patcher", "encoder", "global", "decoder")
#: What the graphs compute in.
DTYPES: Final[dict[Precision, str]] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "float32",
    "int4": "float32",
}

#: Added to the attention scores of what a row must not see. Exactly zero after softmax, and finite in 16 bit.
MASKED: Final = -30000.0
#: Added to the logit of an id that must not be chosen, float32: its probability is exactly zero.
BANNED: Final = -1e30


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output; a string in the shape is a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """The I/O table of one graph; `state` pairs each past input with the present output that shares its buffer."""

    name: GraphName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def state(self) -> dict[str, str]:
        names = {s.name for s in self.outputs}
        pairs = {s.name: present_name(s.name) for s in self.inputs if s.name.startswith("past_")}
        assert set(pairs.values()) <= names
        return pairs


def present_name(past: str) -> str:
    """`past_key_values.0.key` -> `present.0.key`, `past_states` -> `present_states`."""
    return past.replace("past_key_values.", "present.").replace("past_", "present_")


def graph_specs(config: ModelConfig, precision: Precision) -> dict[GraphName, GraphSpec]:
    """The contract of all four graphs at one precision; the patcher is float32 at every precision."""
    dtype = DTYPES[precision]
    h = config.hidden_size
    states = TensorSpec("states", dtype, ("batch", 1, "slots", h))
    cross_kv = TensorSpec("cross_kv", dtype, ("batch", 1, "latent_slots", config.cross_kv_size))
    ids = TensorSpec("ids", "int64", ("batch", "rows"))
    if config.decoder.input == "lookup":
        decoder_input: tuple[TensorSpec, ...] = (ids,)
    else:
        decoder_input = (states, TensorSpec("state_index", "int64", ("batch", "rows")))
    return {
        "patcher": _graph(
            "patcher",
            config.patcher,
            "float32",
            inputs=(ids,),
            outputs=(TensorSpec("entropy", "float32", ("batch", "rows")),),
        ),
        "encoder": _graph(
            "encoder",
            config.encoder,
            dtype,
            inputs=(TensorSpec("embeds", dtype, ("batch", "rows", h)),),
            buffers=(TensorSpec("past_states", dtype, states.shape),),
        ),
        "global": _graph(
            "global",
            config.global_model,
            dtype,
            rows="patches",
            slots="patch_slots",
            inputs=(
                states,
                TensorSpec("patch_index", "int64", ("batch", "patches", "patch_bytes")),
                TensorSpec("patch_len", "int64", ("batch", "patches")),
                TensorSpec("latent_write_indices", "int64", ("batch",)),
            ),
            buffers=(TensorSpec("past_cross_kv", dtype, cross_kv.shape),),
        ),
        "decoder": _graph(
            "decoder",
            config.decoder,
            dtype,
            inputs=(*decoder_input, cross_kv, TensorSpec("latent_index", "int64", ("batch", "rows"))),
            outputs=(TensorSpec("logits", "float32", ("batch", "rows", OUTPUT_IDS)),),
        ),
    }


def choosing_spec(decoder: GraphSpec) -> GraphSpec:
    """The decoder's table in the form that chooses bytes itself (`bltcli_export.choosing`): the id with the largest
    logit + addend, and the largest probability and the entropy in nats, both of the model's own distribution."""
    row = ("batch", "rows")
    chosen = (
        TensorSpec("best", "int64", row),
        TensorSpec("confidence", "float32", row),
        TensorSpec("entropy", "float32", row),
    )
    addend = TensorSpec("addend", "float32", (*row, OUTPUT_IDS))
    return GraphSpec(decoder.name, (*decoder.inputs, addend), decoder.outputs + chosen)


def _graph(
    name: GraphName,
    stack: StackConfig,
    dtype: str,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...] = (),
    buffers: tuple[TensorSpec, ...] = (),
    rows: str = "rows",
    slots: str = "slots",
) -> GraphSpec:
    cache = ("batch", stack.num_kv_heads, slots, stack.head_dim)
    past = buffers + tuple(
        TensorSpec(f"past_key_values.{layer}.{part}", dtype, cache)
        for layer in range(stack.num_layers)
        for part in ("key", "value")
    )
    place = (
        TensorSpec("position_ids", "int64", ("batch", rows)),
        TensorSpec("write_indices", "int64", ("batch",)),
        TensorSpec("attn_bias", dtype, ("batch", 1, rows, slots)),
    )
    present = tuple(TensorSpec(present_name(s.name), s.dtype, s.shape) for s in past)
    return GraphSpec(name, inputs + place + past, outputs + present)
