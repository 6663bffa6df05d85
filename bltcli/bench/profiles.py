"""What `bltcli tune` found, kept per bundle, engine and machine: what `--method auto` does from then on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bltcli.atomic import write_atomically
from bltcli.bench.machine import machine_name
from bltcli.decoding import MethodOptions
from bltcli.decoding.setting import parse_setting
from bltcli.errors import BltError, UsageError
from bltcli.models import cache_dir

FORMAT: Final = "bltcli-profile"
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A tuned method and what it rests on."""

    setting: str  # as `parse_setting` reads it
    quality: str  # "exact", or the least share of bytes that had to equal those of `ar`
    bundle_sha256: str
    engine: str
    machine: str
    speedup: float  # over `ar`, on the sample
    equal_share: float  # of the sample's bytes, those of `ar`
    sample_sha256: str

    def options(self) -> MethodOptions:
        return parse_setting(self.setting)[0]


def profile_path(bundle_sha256: str, engine: str, machine: str | None = None) -> Path:
    """Where the profile for these lies; it need not exist."""
    machine = machine_name() if machine is None else machine
    key = hashlib.sha256(f"{bundle_sha256}\n{engine}\n{machine}".encode()).hexdigest()[:16]
    return cache_dir() / "profiles" / f"{engine}-{key}.json"


def write_profile(profile: Profile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "version": VERSION, **asdict(profile)}
    write_atomically(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def find_profile(bundle_sha256: str, engine: str) -> Profile | None:
    """The profile for this bundle and engine on this machine, if there is one. BltError for a damaged one."""
    path = profile_path(bundle_sha256, engine)
    return read_profile(path) if path.is_file() else None


def read_profile(path: Path) -> Profile:
    """BltError when it is none."""
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        if (facts.pop("format"), facts.pop("version")) != (FORMAT, VERSION):
            raise ValueError(f"expected {FORMAT} {VERSION}")
        profile = Profile(**facts)
        if profile.options().method == "auto":
            raise ValueError("auto stands for itself")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise BltError(f"{path} is no profile of bltcli tune ({error}); delete it, or tune again") from error
    return profile
