"""What was asked for runs, or one line says what is missing; only auto takes something else, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest

from bltcli import cli, engine_choice
from bltcli.building import build_bundle
from bltcli.bundle import Bundle
from bltcli.commands import doctor
from bltcli.engine_choice import open_engines
from bltcli.engine_store import EngineStore
from bltcli.errors import ModelError, UsageError
from bltcli.verify import golden_of_others
from bltcli_engines import gpu, onnxruntime_cuda
from bltcli_engines.gpu import Gpu, missing_library
from bltcli_engines.tensorrt_build import Library, find_library
from tests.cli_support import here, one_line
from tests.conftest import TinyBundle
from tests.host_device import HostDevice, HostTensorrt
from tests.test_tensorrt_build import SMALL

NOTHING = "libnothing-of-that-name.so.1"


@pytest.fixture
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return tiny_bundle("lookup", block_size=16)


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", NOTHING)


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some library in place of the driver's; there is still no GPU behind it."""
    monkeypatch.setattr(gpu, "DRIVER", "libc.so.6")


@pytest.fixture
def with_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No engine opened yet, nothing said yet, nothing built yet."""
    monkeypatch.setattr(engine_choice, "_shared", {})
    monkeypatch.setattr(engine_choice, "_told", set())
    monkeypatch.setenv("BLTCLI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    """Engines, as the stand-in for TensorRT takes them, for this bundle."""
    monkeypatch.setattr("bltcli.building.build_engine", lambda library, path, *_, **__: str(path).encode())
    assert len(list(build_bundle(bundle, SMALL))) == 4
    return EngineStore(bundle)


def refused(bundle: Bundle, engine: str) -> str:
    with pytest.raises(ModelError) as error:
        open_engines(bundle, engine)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("without_driver")
def test_auto_without_a_driver_is_plain_onnxruntime_and_says_nothing(
    bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    assert open_engines(bundle, "auto")[0].name == "ort-cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("without_driver")
def test_an_engine_that_was_asked_for_never_falls_back(bundle: Bundle) -> None:
    for engine, reason in (("ort-cuda", "has no CUDA provider (it offers"), ("tensorrt", "no NVIDIA driver")):
        done = here("generate", "-m", "bundle", "--engine", engine, "-p", "x")
        assert (done.returncode, done.stdout) == (3, b"")
        assert reason in one_line(done)
    assert "finds no GPU here" in refused(bundle, "torch-cuda")
    with pytest.raises(UsageError, match="--engine is cuda; use auto, ort-cpu, ort-cuda, tensorrt, torch"):
        open_engines(bundle, "cuda")


@pytest.mark.usefixtures("with_provider")
def test_what_the_cuda_provider_lacks_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "DRIVER", NOTHING)
    assert f"no NVIDIA driver: {NOTHING}: cannot open shared object file" in refused(bundle, "ort-cuda")
    monkeypatch.setattr(gpu, "DRIVER", "libc.so.6")
    reason = refused(bundle, "ort-cuda")  # a build of ONNX Runtime without the provider's library
    assert "ONNX Runtime's CUDA provider does not load: " in reason
    assert "libonnxruntime_providers_cuda.so: cannot open shared object file" in reason
    assert missing_library(["libc.so.6"]) is None
    (tmp_path / "damaged.so").write_bytes(b"\x7fELF")
    assert str(missing_library([str(tmp_path / "damaged.so")])).startswith(str(tmp_path / "damaged.so: "))


@pytest.mark.usefixtures("with_driver")
def test_engines_that_must_not_be_loaded_are_refused(
    bundle: Bundle, built: EngineStore, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, harm, reason in (
        (
            "encoder.json",
            {"gpu": "NVIDIA A100", "compute_capability": "8.0"},
            "gpu was 'NVIDIA A100', is 'any'; compute",
        ),
        ("global.json", {"library_version": "1.0"}, "for global: library_version was '1.0', is "),
        ("decoder.json", {"graph_sha256": "0"}, "for decoder: graph_sha256 was '0', is "),
        ("decoder.json", {"profile": {**SMALL.__dict__, "slots": 128}}, "for decoder: slots was 128, is 256"),
        ("patcher.json", {"profile": {"slots": 128}}, "for patcher: its record is damaged"),
    ):
        file = built.folder / name
        good = file.read_bytes()
        file.write_text(json.dumps({**json.loads(good), **harm}))
        assert f"{reason}" in refused(bundle, "tensorrt")
        assert f"run {EngineStore(bundle).rebuild}" in refused(bundle, "tensorrt")
        assert cli.run(["generate", "-m", str(bundle.path), "--engine", "tensorrt", "-p", "x"]) == 3
        assert reason in capfd.readouterr().err
        file.write_bytes(good)
    engine = built.folder / "global.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "for global: the file is not the one that was built" in refused(bundle, "tensorrt")
    engine.unlink()
    assert "for global: the file is not the one that was built" in refused(bundle, "tensorrt")


@pytest.mark.usefixtures("with_driver")
def test_engines_that_were_never_built_are_asked_for(bundle: Bundle) -> None:
    assert f"none was built; run {EngineStore(bundle).rebuild}" in refused(bundle, "tensorrt")


@pytest.mark.usefixtures("with_driver")
def test_auto_says_what_it_took_and_why_nothing_better_once(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert open_engines(bundle, "auto")[0].name == "ort-cpu"
    said = capfd.readouterr().err
    assert said.startswith(
        "bltcli: engine: ort-cpu; not tensorrt: no usable TensorRT engine for patcher: none was built"
    )
    assert "; not ort-cuda: onnxruntime" in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("with_driver", "built")
def test_auto_takes_tensorrt_where_engines_were_built_and_their_profile_is_large_enough(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    device = HostDevice()
    host = HostTensorrt(device, bundle.device_specs, SMALL).library
    library = Library(host.module, find_library().name, find_library().version)  # the one that built them
    monkeypatch.setattr("bltcli.building.find_library", lambda: library)
    monkeypatch.setattr("bltcli_engines.cuda_device.cuda_device", lambda: device)
    first, engines = open_engines(bundle, "auto", rows=2)
    second, twins = open_engines(bundle, "auto", rows=2)
    assert first is second  # weights are loaded once
    assert all(engines[name] is not twins[name] for name in engines)
    assert capfd.readouterr().err == "bltcli: engine: tensorrt\n"
    assert open_engines(bundle, "auto", rows=3)[0].name == "ort-cpu"
    assert "not tensorrt: 3 texts at a time are more than the 2" in capfd.readouterr().err
    with pytest.raises(ModelError, match=r"--max-batch 3"):
        open_engines(bundle, "tensorrt", rows=3)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_the_cpu_is_refused(bundle: Bundle) -> None:
    """ONNX Runtime only warns when it leaves out a provider that does not load."""
    with pytest.raises(ModelError, match=r"fell back to .*CPUExecutionProvider"):
        onnxruntime_cuda._open(bundle.graph_paths["encoder"], bundle.specs["encoder"], 0)


@pytest.mark.usefixtures("with_driver", "with_provider")
def test_doctor_names_the_gpu_what_runs_on_it_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Gpu("NVIDIA H200", "9.0", "13.0", 150 * 10**9, 140 * 10**9)
    monkeypatch.setattr("bltcli_engines.gpu.describe_gpu", lambda: found)
    rows = {row["name"]: row for row in doctor.gpu_checks()}
    told = "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0, 140.0 of 150.0 GB free"
    assert (rows["GPU"]["ok"], rows["GPU"]["detail"]) == (True, told)
    assert (rows["tensorrt"]["ok"], rows["ort-cuda"]["ok"]) == (True, False)
    assert "libonnxruntime_providers_cuda.so" in rows["ort-cuda"]["detail"]
    assert rows["ort-cuda"]["fix"] == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    assert all(row["optional"] for row in rows.values())


def test_every_engine_that_is_here_answers_what_is_known(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bltcli.models.resolve_bundle", lambda *_: bundle.path)
    assert [check.name for check in golden_of_others()] == ["golden outputs on torch"]
