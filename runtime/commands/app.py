"""`intsr app`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from intsr.cli.console import common_options, emit_json, say
from intsr.cli.options import PATH
from intsr.errors import MissingLibraryError


@click.command(
    epilog="Example: intsr app; intsr app photo.engine; intsr app engines/ --port 8000 --open",
    short_help="A window in the browser: drop pictures, compare, download.",
)
@click.argument("engines", type=PATH, nargs=-1, metavar="[ENGINE...]")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets the whole network in.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: the first that is free from 7860 on.")
@click.option("--share", is_flag=True, help="Ask Gradio's servers for a public link: whoever has it comes in.")
@click.option("--open", "opens", is_flag=True, help="Open the window in the default browser.")
@click.option("--threads", type=click.IntRange(1), help="CPU engines. Default: the library's own choice.")
@click.option("--memory", metavar="SIZE", help="Of the whole process, such as 4G. Default: what is free.")
@common_options
def app(
    *,
    engines: tuple[Path, ...],
    host: str,
    port: int | None,
    share: bool,
    opens: bool,
    threads: int | None,
    memory: str | None,
    as_json: bool,
) -> None:
    """Open a window in the browser that upscales pictures with ENGINE, files or folders of them.

    Without one, the bundled demonstration model's: it is compiled at the first start, which takes a minute or two
    and the extra `compile`. The window is for this machine alone, asks nobody else for anything, and leaves nothing
    behind when it ends (Ctrl-C). It makes what `intsr upscale` makes of the same file. Needs the extra `app`.
    """
    # Found, not imported: it reads the environment, which is not set yet.
    if find_spec("gradio") is None:
        raise MissingLibraryError("gradio", "app", "the window")
    from intsr.runtime.app.demonstration import demonstration_engine
    from intsr.runtime.app.serve import AppOptions, opened_app, wait
    from intsr.runtime.batch.memory import bytes_from_text

    options = AppOptions(host, port, share, threads, bytes_from_text(memory) if memory is not None else None)
    with opened_app(engines or (demonstration_engine(say),), options, say) as (local, public):
        say(f"open {local} in a browser; Ctrl-C ends it and deletes the pictures")
        if public:
            say(f"public, for whoever has it: {public}")
        if as_json:
            emit_json({"url": local, "public_url": public or None})
        if opens:
            click.launch(local)
        wait()
