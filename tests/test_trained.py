"""A small model that was really trained on blocks: every method on weights that mean something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bltcli.bandwidth import paper_gb
from bltcli.bundle import MANIFEST, Bundle, open_bundle
from bltcli.checkpoint import open_checkpoint, write_checkpoint
from bltcli.checkpoint.identity import PATCHER_SHA256, patcher_sha256
from bltcli.decoding.driver import generate_texts
from bltcli.decoding.setting import parse_setting
from bltcli.decoding.stop import Stop
from bltcli.errors import ModelError
from bltcli.pipeline import open_model
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats
from bltcli_export.exporter import export_checkpoint
from tests.trained import sentences

ALONE = ["blt-s k=4", "blt-dv block=8", "blt-dv block=16 unmask=confidence", "blt-dv block=4 ngram=yes",
         "blt-dv block=8 unmask=entropy", "blt-h trust=1.0", "ar ngram=yes"]  # fmt: skip
EXACT = [*ALONE, "blt-s k=auto", "auto"]  # these learn from the texts beside each
OTHERS = ["blt-d block=4", "blt-d block=8 unmask=one-step", "blt-d block=16 unmask=entropy", "blt-h block=8 trust=0.8"]
PROMPTS = [bytes((sentences(seed)[1:60] - 4).tolist()) for seed in range(900, 904)]


def written(
    bundle: Bundle, setting: str, temperature: float = 0.0, engine: str = "auto", prompts: Sequence[bytes] = PROMPTS
) -> tuple[list[bytes], DecodeStats]:
    model = open_model(bundle, rows=len(prompts), engine=engine)
    return generate_texts(
        model, parse_setting(setting)[0].make(model), prompts, sampler=Sampler(temperature=temperature, seed=3),
        stop=Stop(max_bytes=100),
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_verifies_writes_what_ar_writes_in_fewer_rounds(trained_bundle: Bundle, temperature: float) -> None:
    expected, plain = written(trained_bundle, "ar", temperature)
    assert b". the " in expected[0]  # it learnt something
    for setting in EXACT:
        found, stats = written(trained_bundle, setting, temperature)
        assert found == expected, setting
        passes = stats.decode.passes()
        assert passes["patcher"] == passes["encoder"] == stats.rounds >= passes["global"], setting
        if setting.startswith(("blt-s k=4", "blt-dv block=8")):
            assert stats.acceptance_rate is not None
            assert stats.acceptance_rate > 0.05, setting
            assert stats.rounds < 0.7 * plain.rounds, setting


@pytest.mark.parametrize("setting", ["ar", "blt-s k=4", "blt-dv block=8", *OTHERS])
def test_torch_and_onnx_write_the_same_bytes(trained_bundle: Bundle, setting: str) -> None:
    assert written(trained_bundle, setting)[0] == written(trained_bundle, setting, engine="torch")[0]


def test_blocks_cost_less_and_verification_restores_the_text(trained_bundle: Bundle) -> None:
    """The paper's table in small: gigabytes fall with the block, unverified texts differ, verified ones do not."""
    expected, plain = written(trained_bundle, "ar")
    cost = {"ar": paper_gb(plain.decode.passes(), trained_bundle.parameters)}
    for setting in ("blt-d block=4", "blt-d block=8", "blt-d block=16", "blt-dv block=8"):
        found, stats = written(trained_bundle, f"{setting} unmask=one-step")
        cost[setting] = paper_gb(stats.decode.passes(), trained_bundle.parameters)
        assert (found == expected) == setting.startswith("blt-dv")
    assert cost["ar"] > cost["blt-dv block=8"] > cost["blt-d block=4"] > cost["blt-d block=8"] > cost["blt-d block=16"]


@pytest.mark.parametrize("setting", ["ar", *ALONE, *OTHERS, "blt-d commit=sure", "blt-d block=8 commit=patches"])
def test_passes_per_text_do_not_depend_on_how_many_share_them(trained_bundle: Bundle, setting: str) -> None:
    _, together = written(trained_bundle, setting)
    alone = [written(trained_bundle, setting, prompts=[prompt])[1] for prompt in PROMPTS]
    for graph in ("patcher", "global", "decoder"):  # the encoder waits for the end of a patch where a text is alone
        found = together.to_dict()["text_nfe"][graph]
        assert found == sum(stats.decode.nfe[graph] for stats in alone), graph
        assert max(stats.decode.nfe[graph] for stats in alone) <= together.decode.nfe[graph] < found, graph


def recut(folder: Path, out: Path, change: dict[str, Any], patcher: str | None = None) -> Path:
    """The checkpoint in `folder` with another threshold, or another first tensor of its entropy model."""
    source = open_checkpoint(folder)
    sha = patcher_sha256(source.config.patcher, source.weights)
    config = source.config.to_dict()
    config["patcher"] |= change
    weights = {
        name: np.concatenate(list(w.chunks())).reshape(w.shape).astype(ml_dtypes.bfloat16)
        for name, w in source.weights.items()
    }
    if patcher is not None:
        weights[patcher] = weights[patcher] * 2
    write_checkpoint(
        out, type(source.config).from_dict(config), weights, licence={}, metadata={"training": {PATCHER_SHA256: sha}}
    )
    return out


def test_another_entropy_model_than_the_trained_one_is_refused(trained_checkpoint: Path, tmp_path: Path) -> None:
    same = recut(trained_checkpoint, tmp_path / "same", {})
    bundle = export_checkpoint(open_checkpoint(same), tmp_path / "bundle", precision="fp32", check=False)
    name = next(name for name in open_checkpoint(same).weights if name.startswith("patcher."))
    for number, (change, patcher) in enumerate((({"threshold_nats": 1.5}, None), ({}, name))):
        other = recut(trained_checkpoint, tmp_path / str(number), change, patcher)
        with pytest.raises(ModelError, match="entropy model or threshold is not the one it was trained with"):
            export_checkpoint(open_checkpoint(other), tmp_path / "refused", precision="fp32", check=False)
    assert not (tmp_path / "refused").exists()
    manifest = json.loads((bundle / MANIFEST).read_text())
    shutil.copytree(bundle, tmp_path / "edited")
    manifest["model"]["patcher"]["threshold_nats"] = 1.5
    (tmp_path / "edited" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"threshold_nats of the entropy model is 1\.5, the bundle was made with"):
        open_bundle(tmp_path / "edited")
