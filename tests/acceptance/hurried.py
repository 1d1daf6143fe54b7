"""`embatch` in a hurry: its own clock runs many times faster than the service's.

    python hurried.py FACTOR SINCE -- ARGUMENTS…

`SINCE` is the moment, in seconds since 1970, at which both clocks agree.
"""

import sys
import time

from embatch.cli import main
from embatch.hooks import Hooks

if __name__ == "__main__":
    factor, since = float(sys.argv[1]), float(sys.argv[2])
    hooks = Hooks(clock=lambda: since + (time.time() - since) * factor)
    sys.exit(main(sys.argv[4:], hooks=hooks))
