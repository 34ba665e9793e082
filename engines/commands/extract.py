"""`intsr extract`: the raw plans of a bundle, for trtexec, Triton and the like."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH

if TYPE_CHECKING:
    from intsr.bundle import Bundle

_COPY_CHUNK_BYTES = 1 << 24


@click.command(
    epilog="Example: intsr extract model.engine -o plans && trtexec --loadEngine=plans/unet.plan",
    short_help="Write the raw plans of an .engine file.",
)
@click.argument("engine", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write.")
@common_options
def extract(engine: Path, output: Path, as_json: bool) -> None:
    """Write every member of ENGINE as a file in a folder, with manifest.json beside them.

    The engine is checked first, hash by hash. A folder that an earlier `extract` wrote is replaced.
    """
    from intsr.bundle import MANIFEST_NAME, Bundle
    from intsr.files import atomic_folder

    _check_replaceable(output / MANIFEST_NAME)
    with Bundle(engine) as bundle, atomic_folder(output, marker=MANIFEST_NAME) as folder:
        bundle.check()
        files = [{"name": name, "size_bytes": size} for name, size in _write_members(bundle, folder).items()]
    if as_json:
        emit_json({"folder": str(output), "files": files})
    for file in files:
        say(f"{output / str(file['name'])}: {file['size_bytes']:,} bytes")


def _check_replaceable(manifest_path: Path) -> None:
    """Web pages and browser extensions have a manifest.json too. Raises UsageError for one that is not ours."""
    from intsr.errors import BundleError, UsageError
    from intsr.manifest import manifest_from_json

    if not manifest_path.is_file():
        return
    try:
        manifest_from_json(manifest_path.read_bytes(), manifest_path)
    except (OSError, BundleError) as error:
        expected, fix = "the manifest of an engine", "choose another output"
        raise UsageError(manifest_path, "something else's manifest", expected, fix) from error


def _write_members(bundle: Bundle, folder: Path) -> dict[str, int]:
    """Raises BundleError for a member whose name is more than a file name: it could be written anywhere."""
    from intsr.bundle import MANIFEST_NAME
    from intsr.errors import BundleError
    from intsr.runtime.backends.codes import unpacked

    manifest = json.dumps(asdict(bundle.manifest), indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(manifest, encoding="utf-8")
    sizes = bundle.sizes_bytes()
    for name in sizes:
        if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
            raise BundleError(bundle.path, f"member {name!r}", "plain file names", "do not use this file")
        with bundle.member(name) as view, (folder / name).open("wb") as file:
            content = unpacked(view, f"{bundle.path}:{name}")
            sizes[name] = len(content)
            for start in range(0, len(content), _COPY_CHUNK_BYTES):
                file.write(content[start : start + _COPY_CHUNK_BYTES])
    return {MANIFEST_NAME: len(manifest), **sizes}
