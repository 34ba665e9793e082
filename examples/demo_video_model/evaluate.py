"""Bicubic, the image demonstration model frame by frame, and a video model, on clips of photographs never trained on.

    PYTHONPATH=examples/demo_model python examples/demo_video_model/evaluate.py core/models/demo_video --kodak DIR

Five photographs, four clips each: still, panned, turned and zoomed, with something that moves across. Reduced by
antialiased bicubic; --noise adds what a camera's sensor would, to the low resolution. No colour fix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import torch
from clips import KINDS, MARGIN_PX, Pixels, degraded_clip, moving_clip
from held_out import SKIMAGE_HELD_OUT
from pictures import KODAK_HELD_OUT
from PIL import Image

from intsr.calib.models.open import load_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.video import VideoModel, load_video_model
from intsr.engines.verify.chunks import torch_video_backend
from intsr.runtime.measure.flicker import FlickerMeter
from intsr.runtime.measure.metrics import luma_from_pixels, psnr_db

FRAMES, SIDE_PX = 9, 160
Upscale = Callable[[Pixels], Pixels]


def pixels_from_tensor(x: torch.Tensor) -> Pixels:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8."""
    levels = (x.clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-3, -1).numpy()


def tensor_from_pixels(pixels: Pixels) -> torch.Tensor:
    """(frames, H, W, 3) uint8 -> (frames, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 127.5 - 1.0


def image_model_upscale() -> Upscale:
    """The image demonstration model, frame by frame."""
    networks = reference_networks(load_model("demo"))

    def upscale(enlarged: Pixels) -> Pixels:
        outputs = []
        for frame in tensor_from_pixels(enlarged).unsqueeze(1):
            for network in networks.values():
                frame = network(frame)
            outputs.append(frame)
        return pixels_from_tensor(torch.cat(outputs))

    return upscale


def video_model_upscale(model: VideoModel, with_transformer: bool = True) -> Upscale:
    """The networks as they are exported: a first frame, then chunks. Without the transformer latents pass through."""
    backend = torch_video_backend(model, None, SIDE_PX // model.spec.upscale_factor, FRAMES)

    def upscale(enlarged: Pixels) -> Pixels:
        latent = backend.encode(tensor_from_pixels(enlarged).transpose(0, 1)[None].numpy())
        frames = np.concatenate(list(backend.decode(backend.denoise(latent) if with_transformer else latent)), 2)
        return pixels_from_tensor(torch.from_numpy(frames[0]).transpose(0, 1))

    return upscale


def scores(outputs: Pixels, low: Pixels, originals: Pixels) -> tuple[float, float | None, float | None]:
    """PSNR-Y in dB, and flicker against the original and against the low-resolution film."""
    psnr = psnr_db(*(luma_from_pixels(np.concatenate(list(clip))) for clip in (outputs, originals)))
    meters = FlickerMeter(), FlickerMeter()
    for meter, film in zip(meters, (originals, low), strict=True):
        for before, after in zip(film, outputs, strict=True):
            meter.add(before, after)
    return psnr, meters[0].flicker, meters[1].flicker


def photographs(folder: Path) -> dict[str, Pixels]:
    """Every PNG of a folder."""
    return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))}


def held_out_photographs(kodak: Path) -> dict[str, Pixels]:
    """Kodak 16 to 18, scikit-image's astronaut and coffee."""
    from skimage import data as skimage_data

    pictures = {name[:-4]: np.asarray(Image.open(kodak / name).convert("RGB")) for name in KODAK_HELD_OUT}
    return pictures | {name: getattr(skimage_data, name)() for name in SKIMAGE_HELD_OUT}


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--kodak", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of PNGs to judge by instead.",
)
@click.option("--noise", default=0.0, show_default=True, help="Of the low resolution, its deviation in levels.")
@torch.no_grad()
def main(folder: Path, kodak: Path, photos: Path | None, noise: float) -> None:
    """Print means by kind of clip and over all."""
    torch.set_num_threads(1)
    video_model = load_video_model(str(folder))
    upscales: Mapping[str, Upscale] = {
        "bicubic": lambda enlarged: enlarged,
        "image model": image_model_upscale(),
        "latents passed through": video_model_upscale(video_model, with_transformer=False),
        "video model": video_model_upscale(video_model),
    }
    results: dict[tuple[str, str], list[tuple[float, float | None, float | None]]] = {}
    for number, picture in enumerate((photographs(photos) if photos else held_out_photographs(kodak)).values()):
        for index, kind in enumerate(KINDS):
            rng = np.random.default_rng([2, number, index])
            clip = moving_clip([picture], FRAMES, SIDE_PX + 2 * MARGIN_PX, rng, kind)
            low, enlarged, originals = degraded_clip(clip, noise, rng)
            for name, upscale in upscales.items():
                results.setdefault((kind, name), []).append(scores(upscale(enlarged), low, originals))
    for (kind, name), values in results.items():
        print_means(kind, name, values)
    for name in upscales:
        print_means("all", name, [row for kind in KINDS for row in results[kind, name]])


def print_means(kind: str, name: str, values: list[tuple[float, float | None, float | None]]) -> None:
    psnr, of_original, of_low = (
        np.mean([v for v in column if v is not None]) for column in zip(*values, strict=True)
    )
    click.echo(f"{kind:<8} {name:<23} {psnr:.3f} dB, flicker {of_original:.3f} (against the input {of_low:.3f})")


if __name__ == "__main__":
    main()
