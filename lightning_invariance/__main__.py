"""What ``python -m lightning_invariance`` runs, and ``lightning-invariance``: see ``--help``."""

import sys

from lightning_invariance.auditing._command import main as main

if __name__ == "__main__":
    sys.exit(main())
