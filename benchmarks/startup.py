"""How long a new process takes: `bltcli --help`, and the first byte of the built-in model.

    python benchmarks/startup.py [--repeats 10]

The model's bundle lies in the cache, and its files in memory, as after any use. Verbs take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter

from common import RESULTS, write_rows

COMMANDS = {"help": ["--help"], "first byte": ["generate", "-p", "It was a dark night", "-n", "1"]}


def seconds_to_first_byte(arguments: list[str]) -> float:
    """From before the process starts until it has written something."""
    began = perf_counter()
    with subprocess.Popen([sys.executable, "-m", "bltcli", *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), f"{arguments} wrote nothing"
        seconds = perf_counter() - began
        process.stdout.read()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            found = seconds_to_first_byte(arguments)
            if number:  # the first round warms up
                seconds[name].append(found)
    rows = [{"what": name, "median_s": median(s), "least_s": min(s), "most_s": max(s)} for name, s in seconds.items()]
    for row in rows:
        print(row)
    write_rows(RESULTS / "startup.jsonl", rows)


if __name__ == "__main__":
    main()
