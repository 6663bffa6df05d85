"""The paper's figures for the setting that is nearest to one of ours."""

from __future__ import annotations

from typing import Any, Final

from bltcli.decoding import MethodOptions
from bltcli.errors import UsageError
from bltcli.paper import TASKS, PaperRow, paper_rows

#: What must be known before the two are set side by side.
DIFFERENCES: Final = (
    "The paper's rows are another model's. It pays two passes of encoder and global model per round where this program "
    "pays at most one, its ar calls the global model every 1.15 to 2.4 bytes, and the hash tables, the entropy model "
    "and caches are in neither figure; read its savings against its own ar only."
)
_NEW_BYTES: Final = {"FR-EN": 512, "DE-EN": 512, "HumanEval": 512, "MBPP": 256}
_LENGTHS: Final = {"blt-s": (4, 8, 16), "blt-d": (4, 8, 16), "blt-dv": (4, 8, 16)}
_LETTER: Final = {"confidence": "a", "prefix": "a", "entropy": "g", "entropy-max": "g"}


def parse_paper(text: str) -> tuple[str, str]:
    """ "3B FR-EN" -> size and task. UsageError for a table that the paper does not have."""
    found = {f"{row.size} {row.task}": (row.size, row.task) for row in paper_rows()}
    if text not in found:
        raise UsageError(f"--paper is {text!r}; use one of {', '.join(found)}")
    return found[text]


def beside_paper(options: MethodOptions, trained_block: int, size: str, task: str) -> dict[str, Any] | None:
    """The paper's row for the setting nearest to `options`; None for a method that is not in the paper: blt-h, n-gram
    drafts, adaptive lengths."""
    assert task in TASKS
    rows = [row for row in paper_rows() if (row.size, row.task) == (size, task)]
    if options.ngram_draft or options.commit != "block" or (options.method, options.draft_bytes) == ("blt-s", "auto"):
        return None
    if options.method == "ar":
        row = next(row for row in rows if row.setting == "AR")
    elif options.method not in _LENGTHS:
        return None
    else:
        row = _nearest(options, trained_block, rows)
    return {
        "table": f"{size} {task}",
        "setting": row.model if row.setting == "AR" else f"{row.model} {row.setting}",
        "decoder_nfe_per_byte": row.decoder_nfe / _NEW_BYTES[task],
        "global_nfe_per_byte": row.global_nfe / _NEW_BYTES[task],
        "gb_saving": 0.0 if row.decrease is None else row.decrease / 100,
        "acceptance_rate": None if row.acceptance is None else row.acceptance / 100,
    }


def _nearest(options: MethodOptions, trained_block: int, rows: list[PaperRow]) -> PaperRow:
    settings = options.settings(trained_block)
    wanted = settings["k"] if options.method == "blt-s" else settings["block"]
    length = min(_LENGTHS[options.method], key=lambda n: abs(n - (wanted if isinstance(wanted, int) else 8)))
    if options.method == "blt-s":
        return next(row for row in rows if row.model == "BLT-S" and row.setting == f"k={length}")
    own = [row for row in rows if row.model == f"{options.method.upper()}-{length}"]
    rule = str(settings["unmask"])
    letter = _LETTER.get(rule)
    threshold = settings["alpha" if letter == "a" else "gamma"]
    alike = [row for row in own if letter and row.setting.startswith(f"{letter}=")]
    if not alike:
        return next((row for row in own if row.setting == "one step"), own[0])
    assert isinstance(threshold, float | int)
    return min(alike, key=lambda row: abs(float(row.setting[2:]) - threshold))
