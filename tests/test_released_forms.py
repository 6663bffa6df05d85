"""The configurations of the released models, as published: they give exactly the published sizes. No weights needed."""

from __future__ import annotations

import math

import pytest

from bltcli.checkpoint import hf
from bltcli.checkpoint.names import expected_shapes
from tests.full_size import RELEASED


@pytest.mark.parametrize("form", RELEASED)
def test_published_configurations_give_the_published_sizes(form: str) -> None:
    data, parameters, tensors = RELEASED[form]
    config = hf.read_config(data)
    shapes = expected_shapes(config)
    assert sum(map(math.prod, shapes.values())) == parameters
    assert len(shapes) == tensors
    assert len({hf.source_names(name) for name in shapes}) == tensors
    assert sum(name.startswith("patcher.") for name in shapes) == 129
    assert config.patcher.window == config.encoder.window == config.decoder.window == 512
    assert config.global_model.window is None
    assert config.max_bytes == 24576
    assert config.has_global_projection == (form == "7b")


@pytest.mark.parametrize("form", RELEASED)
def test_tensor_names_and_shapes_are_those_of_hugging_face(form: str) -> None:
    import torch
    from transformers import BltConfig, BltForCausalLM

    data, _, _ = RELEASED[form]
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in BltForCausalLM(BltConfig(**data)).state_dict().items()}
    ours = {hf.source_names(name)[0]: shape for name, shape in expected_shapes(hf.read_config(data)).items()}
    assert ours == theirs
