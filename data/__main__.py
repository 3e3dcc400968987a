"""Lists the commands of this package."""

import functools
import sys

from console import overview

make_parser = functools.partial(overview.make_parser, "data")

if __name__ == "__main__":
    sys.exit(overview.main("data"))
