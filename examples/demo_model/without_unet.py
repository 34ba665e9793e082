"""What the UNet is worth: an engine's pictures with it, and with the latents passed through unchanged in its place.

python examples/demo_model/without_unet.py ENGINE LR HR
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from intsr import open_engine
from intsr.arrays import Array
from intsr.runtime.backends.protocol import Backend, Network
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db
from intsr.runtime.upscaler import Upscaler


class Identity:
    """In the place of a network: what comes in goes out."""

    def __init__(self, replaced: Network) -> None:
        self.input, self.output = replaced.input, replaced.output

    def run(self, x: Array) -> Array:
        return x

    def close(self) -> None:
        """Nothing is held."""


@click.command()
@click.argument("engine", type=click.Path(exists=True, path_type=Path))
@click.argument("lr", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("hr", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--color-fix", default="none", show_default=True)
def main(engine: Path, lr: Path, hr: Path, color_fix: str) -> None:
    """PSNR-Y against the originals, dB: bicubic, the engine, the engine without its UNet."""
    scores: dict[str, list[float]] = {"bicubic": [], "engine": [], "without its UNet": []}
    with open_engine(engine) as opened:
        networks = opened.network("encoder"), Identity(opened.network("unet")), opened.network("decoder")
        sizes = opened.tile_px, opened.overlap_px, opened.upscale_factor
        options = {"resize_filter": opened.resize_filter, "color_fix": opened.color_fix}
        bare = Upscaler(Backend(networks), *sizes, **options)
        for path in sorted(lr.glob("*.png")):
            small, original = Image.open(path), np.asarray(Image.open(hr / path.name))
            made = (
                small.resize(original.shape[1::-1], Image.Resampling.BICUBIC),
                opened.upscale(small, color_fix=color_fix),
                bare.upscale(small, color_fix=color_fix),
            )
            for values, picture in zip(scores.values(), made, strict=True):
                values.append(psnr_db(luma_from_pixels(np.asarray(picture)), luma_from_pixels(original)))
    for name, values in scores.items():
        click.echo(f"{name:<17} {np.mean(values):.3f} dB")


if __name__ == "__main__":
    main()
