"""`python -m cdc.cli` is `cdc`."""

import sys
from pathlib import Path

from cdc.cli import main

# `-m` puts the current folder in front of everything: a file that lies there by chance is no handler, and no library
# that one imports late. As with `cdc`, only python_path and what is installed count; `python -P -m` is stricter still.
if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())] and Path(__file__).parents[2] != Path.cwd():
    del sys.path[0]

main()
