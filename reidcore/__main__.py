"""`python -m reidcore`."""

import sys

from reidcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
