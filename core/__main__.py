"""`python -m intsr`."""

from intsr.cli import run

run()
