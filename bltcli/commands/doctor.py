"""`bltcli doctor`: what this machine has, what is missing, and the command that adds it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import click

from bltcli import __version__, render, settings, streams
from bltcli.commands import engine_option, json_option, options
from bltcli.errors import BltError

NEEDED: Final = ("numpy", "onnx", "onnx-ir", "click", "rich", "ml_dtypes")
OPTIONAL: Final = (
    "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings",
    "huggingface_hub",
)  # fmt: skip
#: Engine or feature -> the packages of which one is enough, and what installs it.
PROVIDERS: Final = {
    "ort-cpu": (("onnxruntime", "onnxruntime-gpu"), "pip install 'bltcli[cpu]'"),
    "torch": (("torch",), "pip install 'bltcli[torch]'"),
    "hub downloads": (("huggingface_hub",), "pip install 'bltcli[hub]'"),
}
CLASH: Final = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # of Linux
HUGE_PAGES_FIX: Final = "set GLIBC_TUNABLES=glibc.malloc.hugetlb=1; models of gigabytes decode up to a fifth faster"
CLASH_FIX: Final = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'bltcli[cpu]'"

Row = dict[str, Any]  # name, ok, detail, fix; optional: its failure is no failure


@click.command(
    epilog="""
Exit code 0 when everything needed is there and the built-in model gives the bytes it should, 3 otherwise.

\b
Examples:
  bltcli doctor
  bltcli doctor --json""",
)
@options(engine_option, json_option, settings.verbosity_options)
def command(engine: str, json: bool) -> int:
    """Check this machine: versions, engines, the cache folder, and the built-in model against known answers."""
    versions = {name: installed(name) for name in (*NEEDED, *OPTIONAL)}
    checks = [package_check(versions), *provider_checks(versions), *gpu_checks(), clash_check(versions), cache_check()]
    checks.append(huge_page_check())
    if all(check["ok"] or check["optional"] for check in checks):
        checks += model_checks(engine)
    healthy = all(check["ok"] or check["optional"] for check in checks)
    facts = {
        "bltcli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
        "checks": checks,
        "ok": healthy,
    }
    streams.write_stdout(render.to_json(facts) if json else human(facts).encode())
    return 0 if healthy else 3


def check(name: str, ok: bool, detail: str, *, fix: str = "", optional: bool = False) -> Row:
    return {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix, "optional": optional}


def installed(name: str) -> str | None:
    """The version of a distribution, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_check(versions: dict[str, str | None]) -> Row:
    missing = [name for name in NEEDED if versions[name] is None]
    found = "all there" if not missing else f"missing: {', '.join(missing)}"
    return check("packages", not missing, found, fix=f"pip install {' '.join(missing)}")


def provider_checks(versions: dict[str, str | None]) -> list[Row]:
    rows = []
    for name, (packages, fix) in PROVIDERS.items():
        found = [f"{package} {versions[package]}" for package in packages if versions[package]]
        rows.append(
            check(name, bool(found), ", ".join(found) or f"{packages[0]} is not installed", fix=fix, optional=True)
        )
    engines = [row["name"] for row in rows if row["ok"] and row["name"] != "hub downloads"]
    return [*rows, check("engines", bool(engines), ", ".join(engines) or "none", fix=PROVIDERS["ort-cpu"][1])]


def gpu_checks() -> list[Row]:
    """The GPU and what runs on it; none of it is needed. What is missing is said by whoever needs it first."""
    from bltcli_engines.gpu import describe_gpu
    from bltcli_engines.onnxruntime_cuda import require_cuda_provider
    from bltcli_engines.tensorrt_build import find_library

    def gpu() -> str:
        found = describe_gpu()
        memory = f"{found.free_bytes / 1e9:.1f} of {found.total_bytes / 1e9:.1f} GB free"
        return f"{found.name}, compute capability {found.capability}, driver for CUDA {found.driver}, {memory}"

    def ort_cuda() -> str:
        require_cuda_provider()
        return "ONNX Runtime's CUDA provider loads"

    def tensorrt() -> str:
        library = find_library()
        return f"{library.name} {library.version}; engines are built by bltcli build"

    probes: tuple[tuple[str, Callable[[], str]], ...] = (("GPU", gpu), ("ort-cuda", ort_cuda), ("tensorrt", tensorrt))
    rows = []
    for name, probe in probes:
        try:
            rows.append(check(name, True, probe(), optional=True))
        except ImportError as error:
            rows.append(check(name, False, f"{error.name} is not installed", optional=True))
        except BltError as error:
            found, _, fix = str(error).rpartition("; ")
            rows.append(check(name, False, found, fix=fix, optional=True))
    return rows


def clash_check(versions: dict[str, str | None]) -> Row:
    both = versions["onnxruntime"] is not None and versions["onnxruntime-gpu"] is not None
    return check("one ONNX Runtime", not both, CLASH if both else "yes", fix=CLASH_FIX)


def cache_check() -> Row:
    """Whether the cache folder, or the nearest folder above it that exists, can be written."""
    from bltcli.models import cache_dir

    path = cache_dir()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    ok = nearest.is_dir() and os.access(nearest, os.W_OK)
    found = str(path) if ok else f"{path} cannot be written; the built-in model is exported anew each time"
    return check("cache folder", ok, found, fix="set BLTCLI_CACHE_DIR to a folder that can be written", optional=True)


def huge_page_check() -> Row:
    """Whether memory comes in huge pages, see docs/performance.md; where it does not, whether asking would help."""
    try:
        mode = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        mode = ""
    if mode == "madvise" and platform.libc_ver()[0] == "glibc":
        asked = "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
        found = "asked for" if asked else "given to those that ask"
        return check("huge pages", asked, found, fix=HUGE_PAGES_FIX, optional=True)
    return check("huge pages", mode == "always", "yes" if mode == "always" else "not given here", optional=True)


def model_checks(engine: str) -> list[Row]:
    """The self-test: known answers of the built-in model, on one engine, or on every other one as well that is here."""
    from bltcli.verify import golden_of_others, self_test

    try:
        found = self_test(engine)
        if engine == "auto":
            found += golden_of_others()
        return [check(row.name, row.ok, row.detail) for row in found]
    except (BltError, ImportError) as error:
        return [check("self-test", False, " ".join(str(error).split()))]


def human(facts: dict[str, Any]) -> str:
    marks = {(True, False): "ok", (True, True): "ok", (False, True): "--", (False, False): "FAIL"}
    rows = [(marks[c["ok"], c["optional"]], c["name"], c["detail"]) for c in facts["checks"]]
    found = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    fixes = "".join(f"to add or repair {c['name']}: {c['fix']}\n" for c in facts["checks"] if c["fix"])
    head = f"bltcli {facts['bltcli']}, Python {facts['python']}, {facts['platform']}\n{found}\n\n"
    end = "" if not fixes else f"\n{fixes}"
    return f"{head}{render.table(rows)}{end}"
