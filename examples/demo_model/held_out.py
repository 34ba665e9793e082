"""The 15 photographs that judge the demonstration model, as folders for `intsr upscale`, `evaluate` and `compare`.

    python examples/demo_model/held_out.py --kodak DIR --realsr DIR -o OUT

writes OUT/hr and OUT/lr: Kodak 16 to 18, every fifth of the RealSR crops, scikit-image's `astronaut` and `coffee`,
and their antialiased bicubic reductions. None of them was trained on.
"""

from __future__ import annotations

from pathlib import Path

import click
from degradations import UPSCALE_FACTOR, reduce_bicubic
from pictures import KODAK_HELD_OUT
from PIL import Image

REALSR_EVERY = 5
SKIMAGE_HELD_OUT = ("astronaut", "coffee")


@click.command()
@click.option("--kodak", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--realsr", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Originals."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(kodak: Path, realsr: Path, output: Path) -> None:
    """Write both folders."""
    from skimage import data as skimage_data

    paths = [*(kodak / name for name in KODAK_HELD_OUT), *sorted(realsr.glob("*.png"))[::REALSR_EVERY]]
    pictures = {path.stem: Image.open(path).convert("RGB") for path in paths}
    pictures |= {name: Image.fromarray(getattr(skimage_data, name)()) for name in SKIMAGE_HELD_OUT}
    for folder in ("hr", "lr"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        width, height = (side // UPSCALE_FACTOR * UPSCALE_FACTOR for side in picture.size)
        original = picture.crop((0, 0, width, height))
        original.save(output / "hr" / f"{name}.png")
        reduce_bicubic(original).save(output / "lr" / f"{name}.png")
    click.echo(f"{output}: {len(pictures)} photographs")


if __name__ == "__main__":
    main()
