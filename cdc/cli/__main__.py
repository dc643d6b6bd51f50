"""`python -m cdc.cli` is `cdc`."""

from cdc.cli import main

main()
