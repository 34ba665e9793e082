"""`python -m intsr`."""

from intsr.cli.signals import run

run()
