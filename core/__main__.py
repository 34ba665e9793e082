"""`python -m intsr`."""

from intsr.cli.entry import run

run()
