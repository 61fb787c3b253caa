"""Run the command line as ``python -m tensorfact.compress``."""

import sys

from tensorfact.compress.cli import main

if __name__ == "__main__":
    sys.exit(main())
