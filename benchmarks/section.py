"""Write a report of `bltcli bench --format json` into a marked section of a Markdown file.

python benchmarks/section.py REPORT.json FILE.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bltcli.atomic import write_atomically
from bltcli.bench.compare import read_report
from bltcli.bench.formats import as_markdown

#: Report -> name of the section, its title, and what is to be known.
SECTIONS = {
    "builtin": (
        "bench",
        "Methods side by side",
        "Where the end of text is ignored, a greedy text soon repeats itself, and n-gram\n"
        "drafts (`auto`) gain from that what they do not gain from a text that goes on.",
    ),
    "builtin-sentences": (
        "bench-sentences",
        "Sentences, translated",
        "Ten sentences of Tatoeba's test set in each of four directions\n"
        "(`benchmarks/sentences.jsonl`), each to its end: what a translator does, one text at a time.",
    ),
}


def write_section(file: Path, name: str, section: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME -->, made where it is missing; touches nothing else."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    text = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    if begin not in text:
        text += f"\n{begin}{end}"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    write_atomically(file, f"{before}{begin}{section}{end}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    name, title, note = SECTIONS[Path(options.report).stem]
    head = f"## {title}\n\nWritten by `make results` from `{options.report}`. {note}\n\n"
    write_section(options.file, name, head + as_markdown(read_report(options.report)))


if __name__ == "__main__":
    main()
