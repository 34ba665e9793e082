"""How outputs are called, and what is taken for a picture by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from intsr.errors import UsageError
from intsr.runtime.films.names import CONTAINERS, film_suffix, is_film
from intsr.runtime.pictures.formats.registry import FORMATS, PICTURE_SUFFIXES

SAME_FORMAT = "same"
DEFAULT_TEMPLATE = "{stem}{ext}"
TEMPLATE_FIELDS = ("stem", "ext", "scale", "engine")
OUTPUT_FORMATS = (SAME_FORMAT, *(item.suffixes[0].removeprefix(".") for item in FORMATS))


@dataclass(frozen=True, slots=True)
class Naming:
    """How an output inside a folder is called. Raises UsageError for a template that is no file name."""

    # With fields of `TEMPLATE_FIELDS`.
    template: str = DEFAULT_TEMPLATE
    # Of `OUTPUT_FORMATS`.
    output_format: str = SAME_FORMAT
    # How many times as large outputs are, and the engine's name, for the template.
    scale: float = 1.0
    engine: str = ""

    def __post_init__(self) -> None:
        # A trial: what is wrong with a template is wrong with it for every picture.
        self.name(Path("a.png"))

    def name(self, source: Path) -> str:
        """Return the output's name for an input. Raises UsageError."""
        same = source.suffix if source.suffix.lower() in PICTURE_SUFFIXES else ".png"
        suffix = same if self.output_format == SAME_FORMAT else f".{self.output_format}"
        suffix, known = (film_suffix(source), tuple(CONTAINERS)) if is_film(source) else (suffix, PICTURE_SUFFIXES)
        values = {"stem": source.stem, "ext": suffix, "scale": f"{self.scale:g}", "engine": self.engine}
        name = "".join(text + values.get(field or "", "") for text, field in _template_parts(self.template))
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", "..", suffix):
            raise UsageError("--name", f"{self.template!r} gives {name!r}", "a file name, no folder")
        if Path(name).suffix.lower() not in known:
            got = f"{self.template!r} gives {name!r}"
            expected = f"a name that ends in a {'film' if known is not PICTURE_SUFFIXES else 'picture'}'s suffix"
            raise UsageError("--name", got, expected, "end it with {ext}")
        return name


def _template_parts(template: str) -> list[tuple[str, str | None]]:
    """Split a template into text and the fields behind it. Raises UsageError for anything but plain known fields."""
    fields = " ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError("--name", f"{template!r} ({error})", f"text with {fields}") from error
    for _, field, specification, conversion in parts:
        if specification or conversion or (field is not None and field not in TEMPLATE_FIELDS):
            raise UsageError("--name", f"{{{field}}} in {template!r}", f"only {fields}")
    return [(text, field) for text, field, _, _ in parts]
