"""Train the demonstration video model: a small one-step model of Wan 2.1's kind in diffusers' own format.

    PYTHONPATH=examples/demo_model python examples/demo_video_model/train.py --kodak DIR --wallpapers DIR \
        --work build/demo_video_model --export OUT

Three phases: the autoencoder on originals and on enlarged low resolution; the transformer, from the latents of low
resolution to what the decoder needs for the original; then all together, with every fourth step as in the first
phase. Interrupt and start again: it goes on from the last checkpoint in --work. One thread, so that it can run beside
other work; it waits while a file `pause` is in --work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from clips import Pixels, degraded_clip, moving_clip, training_clip
from network import DemoVideoModel, export_model
from pictures import KODAK_HELD_OUT, load_training_pictures
from PIL import Image

EMA_DECAY = 0.995
ADAM_EPSILON = 1e-12  # the transformer's gradients are near 1e-8, which is torch's own
# A pixel that changes by no more than this many levels stands still; its change is worth so much beside the pixels.
STILL_LEVELS, STILL_WEIGHT = 3.0, 0.3
SQUARE_WEIGHT = 5.0  # of the squared error beside the absolute one, in [-1, 1]
MIN_DEVIATION = 0.3  # of a latent channel: what is nearly empty is no lever for the transformer
LATENT_PENALTY = 1e-4  # on the latents' mean square: nothing else says how large they are
# Of the learning rate: for the VAE's layers that begin as something, and for its branches, which begin as nothing.
LINEAR_SHARE, BRANCH_SHARE, TRANSFORMER_SHARE = 0.15, 0.7, 1.5
AUTOENCODER_EVERY = 4  # steps of the last phase: so that it stays one, and the transformer's work stays its own
BRANCHES = ("conv1.", "conv2.", "norm1.", "norm2.", "attentions.")
HELD_OUT_NOISE = 1.5  # levels
SAVE_EVERY_S, REPORT_EVERY_S = 120, 480


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training. share: of --minutes. rate: the first learning rate of a cosine that ends near zero."""

    name: str
    share: float
    rate: float
    batch: int
    frames: int
    patch_px: int

    def rate_after(self, progress: float) -> float:
        return self.rate * min(progress * 20 + 0.02, 1.0) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress)))


# Nine frames: the layers of fewest frames look two back, and a first chunk of four never shows them that.
PHASES = (
    Phase("autoencoder", 0.35, 1e-3, batch=2, frames=9, patch_px=64),
    Phase("transformer", 0.15, 1e-3, batch=2, frames=9, patch_px=64),
    Phase("together", 0.5, 8e-4, batch=2, frames=9, patch_px=64),
)


def tensor_from_clips(clips: Sequence[Pixels]) -> torch.Tensor:
    """(frames, H, W, 3) uint8 each -> (N, 3, frames, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def training_batch(pictures: Sequence[Pixels], phase: Phase, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and originals, (batch, 3, frames, patch_px, patch_px) float32 in [-1, 1]. Seeded by the step."""
    rng = np.random.default_rng([16, step])
    clips = [training_clip(pictures, phase.frames, phase.patch_px, rng) for _ in range(phase.batch)]
    inputs, originals = (tensor_from_clips(column) for column in zip(*clips, strict=True))
    return inputs, originals


def restoration_loss(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute and squared error, and that of changes from frame to frame where the wanted clip stands still."""
    changes, outputs_change = wanted.diff(dim=2), outputs.diff(dim=2)
    still = (changes.abs().amax(1, keepdim=True) <= STILL_LEVELS / 127.5).float()
    flicker = ((outputs_change - changes).abs() * still).mean()
    error = outputs - wanted
    return error.abs().mean() + SQUARE_WEIGHT * error.square().mean() + STILL_WEIGHT * flicker


def psnr_y_db(sr: torch.Tensor, original: torch.Tensor) -> float:
    """PSNR on BT.601 limited-range Y, unrounded, peak 255. Inputs (1, 3, frames, H, W) in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1, 1)
    difference = ((sr.clamp(-1, 1) - original) / 2 * weights).sum(1)
    return 10 * math.log10(255**2 / float((difference**2).mean()))


@torch.no_grad()
def held_out_psnr_db(model: DemoVideoModel, kodak: Path) -> dict[str, float]:
    """Means over a clip of each held-out picture: bicubic, the model, the latents passed through, the autoencoder."""
    scores: dict[str, list[float]] = {"bicubic": [], "model": [], "passed_through": [], "autoencoder": []}
    for index, name in enumerate(KODAK_HELD_OUT):
        picture = np.asarray(Image.open(kodak / name).convert("RGB"))
        kind = ("pan", "still", "cut-out")[index]
        clip = moving_clip([picture], 9, 256, np.random.default_rng([1, index]), kind)
        upscaled, original = (
            tensor_from_clips([pixels])
            for pixels in degraded_clip(clip, HELD_OUT_NOISE, np.random.default_rng(index))[1:]
        )
        outputs = (upscaled, model(upscaled), model(upscaled, False), model(original, False))
        for values, output in zip(scores.values(), outputs, strict=True):
            values.append(psnr_y_db(output, original))
    return {key: round(float(np.mean(values)), 3) for key, values in scores.items()}


def _is_branch(name: str) -> bool:
    return any(part in name for part in BRANCHES)


class Trainer:
    """What a checkpoint holds, and one training step."""

    def __init__(self, checkpoint: Path, minutes: float) -> None:
        self.checkpoint, self.minutes = checkpoint, minutes
        torch.manual_seed(0)
        self.model, self.ema = DemoVideoModel(), DemoVideoModel()
        self.ema.load_state_dict(self.model.state_dict())
        self.step, self.phase_index, self.elapsed_s = 0, 0, 0.0
        state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.step, self.phase_index, self.elapsed_s = (state[k] for k in ("step", "phase_index", "elapsed_s"))
        self.optimizer = self._optimizer()
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def phase(self) -> Phase:
        return PHASES[self.phase_index]

    @property
    def progress(self) -> float:
        """Of the phase's time, 1 where it is over."""
        return min(self.elapsed_s / (self.phase.share * self.minutes * 60), 1.0)

    def _optimizer(self) -> torch.optim.AdamW:
        """The parameters of the phase, every group with its share of the rate; all others frozen."""
        groups = []
        if self.phase.name != "transformer":
            named = list(self.model.vae.named_parameters())
            groups.append(([p for name, p in named if not _is_branch(name)], LINEAR_SHARE))
            groups.append(([p for name, p in named if _is_branch(name)], BRANCH_SHARE))
        if self.phase.name != "autoencoder":
            # What makes the modulation and the text stays: they are constants, which blocks and tables learn better.
            tokens = [p for name, p in self.model.transformer.named_parameters() if "condition_embedder" not in name]
            groups.append((tokens, TRANSFORMER_SHARE))
        self.model.requires_grad_(False)
        for parameters, _ in groups:
            for parameter in parameters:
                parameter.requires_grad_(True)
        shares = [{"params": parameters, "share": share} for parameters, share in groups]
        return torch.optim.AdamW(shares, betas=(0.9, 0.98), eps=ADAM_EPSILON, weight_decay=1e-4, fused=True)

    @torch.no_grad()
    def _measure_latents(self, pictures: Sequence[Pixels]) -> None:
        inputs, _ = training_batch(pictures, Phase("measure", 0, 0, batch=32, frames=9, patch_px=64), 0)
        latent = self.ema.encode(inputs)
        self.ema.mean.copy_(latent.mean((0, 2, 3, 4), keepdim=True))
        self.ema.deviation.copy_(latent.std((0, 2, 3, 4), keepdim=True).clamp(min=MIN_DEVIATION))

    def next_phase(self, pictures: Sequence[Pixels]) -> bool:
        """Begin the next phase with the averaged weights; False where there is none."""
        if self.phase_index + 1 == len(PHASES):
            return False
        if self.phase.name == "autoencoder":
            self._measure_latents(pictures)
        self.phase_index, self.elapsed_s = self.phase_index + 1, 0.0
        self.model.load_state_dict(self.ema.state_dict())
        self.optimizer = self._optimizer()
        return True

    def _loss(self, inputs: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """Of the autoencoder, for half originals and half enlarged low resolution, or of the whole."""
        if self.phase.name == "autoencoder":
            return self._autoencoder_loss(inputs, originals, penalty=LATENT_PENALTY)
        if self.phase.name == "together" and self.step % AUTOENCODER_EVERY == 0:
            return self._autoencoder_loss(inputs, originals, penalty=0.0)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(inputs)
        return restoration_loss(outputs.float(), originals)

    def _autoencoder_loss(self, inputs: torch.Tensor, originals: torch.Tensor, penalty: float) -> torch.Tensor:
        half = len(inputs) // 2
        wanted = torch.cat((originals[:half], inputs[half:]))
        with torch.autocast("cpu", torch.bfloat16):
            latent = self.model.encode(wanted)
            outputs = self.model.decode(latent)
        return restoration_loss(outputs.float(), wanted) + penalty * latent.float().square().mean()

    def train_step(self, pictures: Sequence[Pixels]) -> float:
        start = time.monotonic()
        inputs, originals = training_batch(pictures, self.phase, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.rate_after(self.progress) * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(inputs, originals)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 0.5)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.elapsed_s += time.monotonic() - start
        return float(loss.detach())

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"phase_index": self.phase_index, "elapsed_s": self.elapsed_s}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--kodak", type=FOLDER, required=True, help="kodim01.png to kodim18.png.")
@click.option("--wallpapers", type=FOLDER, required=True, help="The package's /usr/share/backgrounds.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the checkpoint is.")
@click.option("--export", "export_folder", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=40.0, show_default=True, help="All phases together, held-out checks apart.")
def main(kodak: Path, wallpapers: Path, work: Path, export_folder: Path, minutes: float) -> None:
    """Train all phases and export the averaged weights."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    pictures = load_training_pictures(kodak, wallpapers)
    trainer = Trainer(work / "checkpoint.pt", minutes)
    while True:
        train_phase(trainer, pictures, kodak)
        trainer.save()
        if not trainer.next_phase(pictures):
            break
    export_model(trainer.ema, export_folder)
    click.echo(f"exported {export_folder}")


def train_phase(trainer: Trainer, pictures: Sequence[Pixels], kodak: Path) -> None:
    losses: list[float] = []
    saved = reported = time.monotonic()
    while trainer.progress < 1.0:
        while (trainer.checkpoint.parent / "pause").exists():
            time.sleep(1)
        losses.append(trainer.train_step(pictures))
        if time.monotonic() - saved > SAVE_EVERY_S:
            trainer.save()
            saved = time.monotonic()
        if time.monotonic() - reported > REPORT_EVERY_S or trainer.progress >= 1.0:
            click.echo(
                f"{trainer.phase.name}: step {trainer.step} {trainer.elapsed_s / 60:.1f} min "
                f"loss {np.mean(losses):.4f} psnr_y {held_out_psnr_db(trainer.ema, kodak)}"
            )
            losses.clear()
            reported = time.monotonic()


if __name__ == "__main__":
    main()
