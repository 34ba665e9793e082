"""`python -m intsr`."""

from intsr.cli import main

main()
