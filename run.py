"""Runs a config: `python -m mv2mae_jax.run`, from a checkout. It stays as light to import."""

import functools
import sys

from mv2mae_jax import run as program

PROG = "python run.py"
make_parser = functools.partial(program.make_parser, PROG)
main = functools.partial(program.main, prog=PROG)
run = program.run

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
