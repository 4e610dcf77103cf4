"""``python -m phloem`` and the command ``phloem``."""

import sys

from phloem.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
