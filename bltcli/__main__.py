"""`python -m bltcli`."""

from bltcli.cli import main

main()
