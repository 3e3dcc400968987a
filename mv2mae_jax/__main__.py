"""Lists the commands of this package."""

import functools
import sys

from console import overview

make_parser = functools.partial(overview.make_parser, "mv2mae_jax")

if __name__ == "__main__":
    sys.exit(overview.main("mv2mae_jax"))
