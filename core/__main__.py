"""`python -m intsr`."""

from intsr.entry import run

run()
