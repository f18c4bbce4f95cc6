"""``python -m openhunyuan``: the same as the command ``openhunyuan``."""

import sys

from openhunyuan.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
