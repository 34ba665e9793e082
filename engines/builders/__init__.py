"""One file a target that turns a graph into a plan, in a child process, cached."""
