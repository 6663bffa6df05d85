"""Write a report of `bltcli bench --format json` into a marked section of a Markdown file.

python benchmarks/section.py REPORT.json FILE.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bltcli.atomic import write_atomically
from bltcli.bench.compare import read_report
from bltcli.bench.formats import as_markdown

TITLE = """## Methods side by side

Written by `make results` from `{name}`. Where the end of text is ignored, a greedy text soon repeats itself, and n-gram
drafts (`auto`) gain from that what they do not gain from a text that goes on.

"""


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
    section = TITLE.format(name=options.report) + as_markdown(read_report(options.report))
    write_section(options.file, "bench", section)


if __name__ == "__main__":
    main()
