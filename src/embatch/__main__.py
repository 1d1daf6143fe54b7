"""`python -m embatch` is the command `embatch`."""

import sys

from embatch.cli import main

sys.exit(main())
