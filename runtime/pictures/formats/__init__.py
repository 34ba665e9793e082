"""One file a format: what it is called and can hold, how it is read, streamed and checked."""
