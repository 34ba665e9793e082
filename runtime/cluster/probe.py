"""What a node of the cluster is asked before it gets work.

It is sent as its own source: nothing of this package is imported before the node was asked whether it has it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node answers. code: `code_digest` of its package. has_engine: it finds the engine by its digest."""

    code: str = ""
    has_engine: bool = False
    # Why it cannot work; "" where it can.
    problem: str = ""


def facts_of_node(engine_path: str, engine_digest: str) -> NodeFacts:
    """Never raises: whatever is wrong on the node is its answer."""
    try:
        from importlib import import_module
        from pathlib import Path

        import ray.data  # noqa: F401

        from intsr.bundle import read_manifest
        from intsr.runtime.backends.compatibility import check_runs_here
        from intsr.runtime.cluster.engine_file import code_digest, found_engine
        from intsr.targets import target_from_name

        path = found_engine(Path(engine_path), engine_digest)
        if path is not None:
            manifest = read_manifest(path)
            check_runs_here(manifest, engine_path)
            import_module(target_from_name(manifest.target).module)
        return NodeFacts(code_digest(), path is not None)
    except ImportError as error:
        fix = 'install the same on all nodes: pip install "intsr[ray]"'
        return NodeFacts(problem=f"{error.name or error} cannot be imported; {fix}")
    except Exception as error:
        return NodeFacts(problem=" ".join(str(error).split()) or type(error).__name__)
