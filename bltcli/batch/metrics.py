"""What a run has done so far: as a line for people, as Prometheus text for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from bltcli.batch.ordering import Item
from bltcli.stats import DecodeStats

STATUSES: Final = ("ok", "truncated", "failed")


@dataclass
class Meter:
    """Counts of one run. `stats` are the decoder's own, None where others decode."""

    stats: DecodeStats | None = None
    total_bytes: int | None = None  # of the input, where it is known
    finished: int = 0  # records, of which some wait for those before them
    finished_bytes: int = 0  # of input
    ran_bytes: int = 0  # of these, in records that were run now
    records: Counter[str] = field(default_factory=Counter)  # that were written, by status
    resumed: int = 0  # texts that the journal knew
    texts: int = 0  # that went through the model in this run
    source_bytes: int = 0
    output_bytes: int = 0
    new_bytes: int = 0  # generated in this run
    began: float = field(default_factory=perf_counter)

    def finish(self, item: Item) -> None:
        """Count a record whose results are there."""
        self.finished += 1
        self.finished_bytes += item.size
        self.ran_bytes += item.size if item.ran else 0

    def count(self, item: Item, status: str, output_bytes: int) -> None:
        """Count a record that was written."""
        self.records[status] += 1
        self.source_bytes += item.size
        self.output_bytes += output_bytes

    @property
    def wall_s(self) -> float:
        return perf_counter() - self.began

    @property
    def failed(self) -> bool:
        return any(count for status, count in self.records.items() if status != "ok")

    def line(self, *, final: bool = False) -> str:
        """`1204 records, 5321 bytes/s, 49% of drafts kept, 1 truncated, 2 failed, 12 s left`; the last by what this run
        did itself, not by what it found in the journal."""
        wall_s = self.wall_s
        new_bytes = self.new_bytes if self.stats is None else self.stats.new_bytes  # texts under way included
        parts = [f"{self.finished} records", f"{new_bytes / max(wall_s, 1e-9):.0f} bytes/s"]
        if self.stats is not None and self.stats.acceptance_rate is not None:
            parts.append(f"{self.stats.acceptance_rate:.0%} of drafts kept")
        parts += [f"{self.records[status]} {status}" for status in STATUSES[1:] if self.records[status]]
        if self.resumed:
            parts.append(f"{self.resumed} texts from the journal")
        if final:
            parts.append(f"{wall_s:.1f} s")
        elif self.total_bytes and self.ran_bytes:
            parts.append(f"{duration(wall_s * max(0, self.total_bytes - self.finished_bytes) / self.ran_bytes)} left")
        return ", ".join(parts)

    def prometheus(self, peak_rss_bytes: int | None) -> str:
        """The counts in Prometheus' text format."""
        families: list[tuple[str, str, str, Mapping[str, float]]] = [
            ("records_total", "counter", "Records written, by status.",
             {f'{{status="{status}"}}': self.records[status] for status in STATUSES}),
            ("source_bytes_total", "counter", "Bytes of input whose output is written.", {"": self.source_bytes}),
            ("output_bytes_total", "counter", "Bytes of output written.", {"": self.output_bytes}),
            ("texts_total", "counter", "Texts run through the model.", {"": self.texts}),
            ("resumed_texts_total", "counter", "Texts taken from the journal.", {"": self.resumed}),
            ("generated_bytes_total", "counter", "Bytes generated.", {"": self.new_bytes}),
            ("elapsed_seconds", "gauge", "Seconds since the run began.", {"": round(self.wall_s, 3)}),
        ]  # fmt: skip
        if self.stats is not None:
            passes = (self.stats.prefill + self.stats.decode).passes()
            families += [
                ("drafted_bytes_total", "counter", "Bytes drafted.", {"": self.stats.drafted}),
                ("accepted_bytes_total", "counter", "Drafted bytes that were kept.", {"": self.stats.accepted}),
                ("passes_total", "counter", "Passes, by graph.",
                 {f'{{graph="{graph}"}}': count for graph, count in passes.items()}),
            ]  # fmt: skip
        if peak_rss_bytes is not None:
            families.append(("peak_rss_bytes", "gauge", "Most memory held by the process.", {"": peak_rss_bytes}))
        lines = []
        for name, kind, text, samples in families:
            lines += [f"# HELP bltcli_{name} {text}", f"# TYPE bltcli_{name} {kind}"]
            lines += [f"bltcli_{name}{labels} {value}" for labels, value in samples.items()]
        return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
