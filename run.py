"""`python run.py`: the command of `mv2mae_jax/run.py`, from a checkout. Like that module, it imports nothing heavy."""

import functools
import sys

from mv2mae_jax import run as program

PROG = "python run.py"
make_parser = functools.partial(program.make_parser, PROG)
main = functools.partial(program.main, prog=PROG)
run = program.run

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
