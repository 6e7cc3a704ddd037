"""``python -m latentfit`` is the command ``latentfit``."""

import sys

from latentfit.cli import main

if __name__ == "__main__":
    sys.exit(main())
