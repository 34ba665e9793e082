"""Train the demonstration model: a small one-step model in diffusers' own format.

    python examples/demo_model/train.py --kodak DIR --work build/demo_model --export core/models/demo

Two phases. First the VAE alone (the UNet contributes e = 0), then everything, with the UNet's last layer
at zero so that the second phase starts where the first one ended. L1 loss, AdamW, a rate that falls along a
cosine over the time given, an exponential moving average of the weights. Interrupt and start again: it goes
on from the last checkpoint in --work.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pictures import (
    KODAK_HELD_OUT,
    load_training_pictures,
    pair_from_picture,
    pairs_from_pictures,
    random_batch,
    tensor_from_array,
)
from PIL import Image
from safetensors.torch import save_file

TIMESTEP = 104  # alpha-bar = 0.89 on SD 2.1's schedule: e is amplified by sqrt(0.11 / 0.89), not by 14.6
LATENT_SCALING_FACTOR = 0.5
CONTEXT_SHAPE = (1, 8, 64)
EMA_DECAY = 0.998


class DemoModel(torch.nn.Module):
    """Encoder, UNet at one timestep, decoder: (N, 3, H, W) float32 in [-1, 1] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=8,
            scaling_factor=LATENT_SCALING_FACTOR,
            mid_block_add_attention=False,
        )
        self.unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=8,
            out_channels=8,
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=CONTEXT_SHAPE[-1],
            attention_head_dim=(2, 3, 4),  # diffusers' name for the number of heads: 32 channels each
            use_linear_projection=True,
        )
        torch.nn.init.zeros_(self.unet.conv_out.weight)
        torch.nn.init.zeros_(self.unet.conv_out.bias)
        self.context = torch.nn.Parameter(torch.randn(CONTEXT_SHAPE) * 0.5)
        self.scheduler = DDPMScheduler(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        self.alpha_bar = float(self.scheduler.alphas_cumprod[TIMESTEP])

    def forward(self, x: torch.Tensor, with_unet: bool = True) -> torch.Tensor:
        latent = self.vae.encode(x).latent_dist.mean * LATENT_SCALING_FACTOR
        if with_unet:
            context = self.context.expand(x.shape[0], -1, -1)
            error = self.unet(latent, TIMESTEP, encoder_hidden_states=context).sample
            latent = latent - math.sqrt(1 - self.alpha_bar) * error
        return self.vae.decode(latent / math.sqrt(self.alpha_bar) / LATENT_SCALING_FACTOR).sample


def psnr_y_db(sr: torch.Tensor, original: torch.Tensor) -> float:
    """PSNR on BT.601 limited-range Y, unrounded, peak 255. Inputs (1, 3, H, W) in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    difference = ((sr.clamp(-1, 1) - original) / 2 * weights).sum(1)
    return 10 * math.log10(255**2 / float((difference**2).mean()))


@torch.no_grad()
def held_out_psnr_db(model: DemoModel, kodak: Path, with_unet: bool) -> dict[str, float]:
    model.eval()
    scores: dict[str, list[float]] = {"bicubic": [], "model": []}
    for name in KODAK_HELD_OUT:
        upscaled, original = (
            tensor_from_array(a)[None] for a in pair_from_picture(Image.open(kodak / name).convert("RGB"))
        )
        scores["bicubic"].append(psnr_y_db(upscaled, original))
        scores["model"].append(psnr_y_db(model(upscaled, with_unet).float(), original))
    model.train()
    return {key: round(float(np.mean(values)), 3) for key, values in scores.items()}


def export_model(model: DemoModel, folder: Path) -> None:
    """diffusers' folder format in fp16, plus what one-step inference needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    half = DemoModel()
    half.load_state_dict(model.state_dict())
    half.half()
    half.vae.save_pretrained(folder / "vae")
    half.unet.save_pretrained(folder / "unet")
    half.scheduler.save_pretrained(folder / "scheduler")
    save_file({"context": model.context.detach().float().contiguous()}, folder / "context.safetensors")
    spec = {
        "schema_version": 1,
        "name": "demo",
        "timestep": TIMESTEP,
        "upscale_factor": 4,
        "resize_filter": "bicubic",
        "context": "context.safetensors",
        "licence": "Apache-2.0; trained on the Kodak suite (unrestricted) and CC0 pictures of scikit-image",
    }
    (folder / "intsr_model.json").write_text(json.dumps(spec, indent=2) + "\n")


class Trainer:
    """What a checkpoint holds, and one training step."""

    def __init__(self, checkpoint: Path, vae_minutes: float, minutes: float) -> None:
        self.checkpoint = checkpoint
        self.vae_seconds, self.seconds = vae_minutes * 60, minutes * 60
        self.model = DemoModel().to(memory_format=torch.channels_last)
        self.ema = DemoModel().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
        self.step, self.elapsed_s = 0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        else:
            self.ema.load_state_dict(self.model.state_dict())

    @property
    def with_unet(self) -> bool:
        return self.elapsed_s > self.vae_seconds

    def learning_rate(self) -> float:
        """1e-3 for the VAE alone; then 6e-4 falling to 6e-6 along a cosine, after a warm-up of a minute."""
        if not self.with_unet:
            return 1e-3
        since = self.elapsed_s - self.vae_seconds
        progress = min(since / (self.seconds - self.vae_seconds), 1.0)
        return 6e-4 * min(since / 60, 1.0) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))

    def train_step(self, inputs: torch.Tensor, originals: torch.Tensor) -> float:
        start = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(inputs.to(memory_format=torch.channels_last), self.with_unet)
        loss = (outputs.float() - originals).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
            for average, value in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(value, 1 - decay)
        self.step += 1
        self.elapsed_s += time.monotonic() - start
        return float(loss.detach())

    def save(self) -> None:
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
            },
            temporary,
        )
        temporary.replace(self.checkpoint)


@click.command()
@click.option("--kodak", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option("--export", "export_folder", type=click.Path(path_type=Path), required=True)
@click.option("--vae-minutes", type=float, default=6.0, show_default=True)
@click.option("--minutes", type=float, default=63.0, show_default=True, help="Both phases together.")
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--patch", "patch_px", type=int, default=64, show_default=True)
def main(
    kodak: Path, work: Path, export_folder: Path, vae_minutes: float, minutes: float, batch: int, patch_px: int
) -> None:
    """Train, resume, export."""
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(work / "checkpoint.pt", vae_minutes, minutes)
    pairs = pairs_from_pictures(load_training_pictures(kodak))
    # Seeded by the step, so that a resumed run does not see the same crops again.
    rng = np.random.default_rng([17, trainer.step])
    losses: list[float] = []
    while trainer.elapsed_s < trainer.seconds:
        losses.append(trainer.train_step(*random_batch(pairs, batch, patch_px, rng)))
        if trainer.step % 500 == 0:
            trainer.save()
            scores = held_out_psnr_db(trainer.ema, kodak, trainer.with_unet)
            click.echo(
                f"step {trainer.step} {trainer.elapsed_s / 60:.1f} min loss {np.mean(losses):.4f} "
                f"lr {trainer.learning_rate():.1e} psnr_y {scores}"
            )
            losses.clear()
    trainer.save()
    export_model(trainer.ema, export_folder)
    click.echo(f"exported {export_folder}: {held_out_psnr_db(trainer.ema, kodak, True)}")


if __name__ == "__main__":
    main()
