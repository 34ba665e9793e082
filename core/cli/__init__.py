"""The process: entry, signals, exit codes, the lazy table of commands, and what all commands share."""
