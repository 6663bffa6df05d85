"""Write a report of `bltcli bench --format json` into a marked section of a Markdown file.

    python benchmarks/section.py REPORT.json FILE.md

The section stands between <!-- bench --> and <!-- /bench -->, and is made where it is missing; nothing else is touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bltcli.atomic import write_atomically
from bltcli.bench.compare import read_report
from bltcli.bench.formats import as_markdown

BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->\n"
TITLE = """## Methods side by side

Written by `make results` from `{name}`. Where the end of text is ignored, a greedy text soon repeats itself, and n-gram
drafts (`auto`) gain from that what they do not gain from a text that goes on.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8") if options.file.exists() else f"# Results\n\n{BEGIN}{END}"
    if BEGIN not in text:
        text += f"\n{BEGIN}{END}"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    section = TITLE.format(name=options.report) + as_markdown(read_report(options.report))
    write_atomically(options.file, f"{before}{BEGIN}{section}{END}{after}".encode())


if __name__ == "__main__":
    main()
