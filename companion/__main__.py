"""The command line, `python -m companion`: see `companion.commands`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
