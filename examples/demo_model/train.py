"""Train the demonstration model: a small one-step model in diffusers' own format.

    python examples/demo_model/train.py --kodak DIR --wallpapers DIR --work build/demo_model --export core/models/demo

Five phases. The autoencoder on originals and on enlarged low resolution; then the UNet, between the frozen encoder
and decoder, for what is missing from the encoded low resolution; then the decoder with it; then all of it; and the
same mostly on bicubic reductions. From the third on, every fourth step asks for what the autoencoder was trained for,
so that the UNet's work stays the UNet's. L1 loss, AdamW, a rate that falls along a cosine over the time given to a
phase, an exponential moving average of the weights. Interrupt and start again: it goes on from the last checkpoint in
--work.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from degradations import MIXED_SHARE, upscaled_pair
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pictures import KODAK_HELD_OUT, Pixels, load_training_pictures, random_crop, smooth_crop
from PIL import Image
from safetensors.torch import load_file, save_file

TIMESTEP = 104  # alpha-bar = 0.89 on SD 2.1's schedule: e is amplified by sqrt(0.11 / 0.89), not by 14.6
CONTEXT_SHAPE = (1, 8, 64)
EMA_DECAY = 0.998
SMOOTH_SHARE = 0.08
MARGIN_PX = 32  # cut away after degrading, so that no crop shows a kernel at its border
LATENT_PENALTY = 1e-4  # on the latents' mean square: nothing else says how large they are
DECODER_RATE, TOGETHER_RATE = 0.3, 0.5  # of the UNet's
AUTOENCODER_EVERY = 4  # steps of the last two phases: one of them asks for what the autoencoder was trained for


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
            latent_channels=16,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        self.unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=16,
            out_channels=16,
            block_out_channels=(80, 80, 96),
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            norm_num_groups=16,
            cross_attention_dim=CONTEXT_SHAPE[-1],
            attention_head_dim=(2, 2, 3),  # diffusers' name for the number of heads: 32 channels each
            use_linear_projection=True,
        )
        torch.nn.init.zeros_(self.unet.conv_out.weight)
        torch.nn.init.zeros_(self.unet.conv_out.bias)
        # 1 over the latents' standard deviation, measured when the autoencoder is done: the UNet works on units.
        self.register_buffer("latent_scaling_factor", torch.tensor(1.0))
        self.context = torch.nn.Parameter(torch.randn(CONTEXT_SHAPE) * 0.5)
        self.scheduler = DDPMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
        )
        self.alpha_bar = float(self.scheduler.alphas_cumprod[TIMESTEP])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.vae.encode(x).latent_dist.mean * self.latent_scaling_factor
        return latent

    def restore(self, latent: torch.Tensor) -> torch.Tensor:
        """x0 = (z - sqrt(1 - a) e) / sqrt(a)."""
        context = self.context.expand(latent.shape[0], -1, -1)
        error = self.unet(latent, TIMESTEP, encoder_hidden_states=context).sample
        x0: torch.Tensor = (latent - math.sqrt(1 - self.alpha_bar) * error) / math.sqrt(self.alpha_bar)
        return x0

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = self.vae.decode(latent / self.latent_scaling_factor).sample
        return picture

    def forward(self, x: torch.Tensor, with_unet: bool = True) -> torch.Tensor:
        latent = self.encode(x)
        return self.decode(self.restore(latent) if with_unet else latent)


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training. rate: the first learning rate of its cosine, which ends at a hundredth of it.

    mixed_share: of the crops, see `degradations`. square: weight of the squared error beside the absolute one.
    """

    name: str
    minutes: float
    rate: float
    batch: int
    patch_px: int
    mixed_share: float = MIXED_SHARE
    square: float = 0.0

    def rate_after(self, seconds: float) -> float:
        progress = min(seconds / (self.minutes * 60), 1.0)
        return self.rate * min(seconds / 30 + 0.01, 1.0) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))


def tensor_from_array(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(array.copy()).movedim(-1, -3).float() / 127.5 - 1.0


def training_batch(pictures: Sequence[Pixels], phase: Phase, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, 3, patch_px, patch_px) float32 in [-1, 1], twice: inputs and originals. Seeded by the step."""
    rng = np.random.default_rng([17, step])
    side, inner = phase.patch_px + 2 * MARGIN_PX, slice(MARGIN_PX, MARGIN_PX + phase.patch_px)
    pairs = []
    for _ in range(phase.batch):
        smooth = rng.random() < SMOOTH_SHARE
        crop = smooth_crop(side, rng) if smooth else random_crop(pictures, side, rng)
        pairs.append(
            [pixels[inner, inner] for pixels in upscaled_pair(Image.fromarray(crop), rng, phase.mixed_share)]
        )
    inputs, originals = (tensor_from_array(np.stack(column)) for column in zip(*pairs, strict=True))
    return inputs, originals


def training_batches(
    pictures: Sequence[Pixels], phase: Phase, first_step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`training_batch` of every step from the first one on, each made while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(training_batch, pictures, phase, first_step)
        step = first_step
        while True:
            step += 1
            ready, coming = coming, pool.submit(training_batch, pictures, phase, step)
            yield ready.result()


def psnr_y_db(sr: torch.Tensor, original: torch.Tensor) -> float:
    """PSNR on BT.601 limited-range Y, unrounded, peak 255. Inputs (1, 3, H, W) in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    difference = ((sr.clamp(-1, 1) - original) / 2 * weights).sum(1)
    return 10 * math.log10(255**2 / float((difference**2).mean()))


@torch.no_grad()
def held_out_psnr_db(model: DemoModel, kodak: Path) -> dict[str, float]:
    """Means: bicubic, the model, the model without its UNet, originals encoded and decoded."""
    model.eval()
    scores: dict[str, list[float]] = {"bicubic": [], "model": [], "no_unet": [], "autoencoder": []}
    for name in KODAK_HELD_OUT:
        pair = upscaled_pair(Image.open(kodak / name).convert("RGB"))
        upscaled, original = (tensor_from_array(a)[None] for a in pair)
        outputs = (upscaled, model(upscaled), model(upscaled, False), model(original, False))
        for key, output in zip(scores, outputs, strict=True):
            scores[key].append(psnr_y_db(output, original))
    model.train()
    return {key: round(float(np.mean(values)), 3) for key, values in scores.items()}


def export_model(model: DemoModel, folder: Path) -> None:
    """diffusers' folder format in fp16, plus what one-step inference needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    half = DemoModel()
    half.load_state_dict(model.state_dict())
    half.vae.register_to_config(scaling_factor=float(model.latent_scaling_factor))
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
        "licence": "Apache-2.0; trained on the Kodak suite (unrestricted), CC0 pictures of scikit-image, and "
        "photographs of lomiri-wallpapers (CC0 and CC BY 4.0, authors in examples/demo_model/README.md)",
    }
    (folder / "intsr_model.json").write_text(json.dumps(spec, indent=2) + "\n")


@torch.no_grad()
def start_from(vae: AutoencoderKL, path: Path) -> None:
    """Take over what another autoencoder of this design has learned; further latent channels start as they are."""
    old = load_file(path)
    for name, tensor in vae.state_dict().items():
        given = old[name]
        if given.shape == tensor.shape:
            tensor.copy_(given)
            continue
        # The first half of these rows are means, the second log-variances.
        halves = 2 if name.startswith(("encoder.conv_out", "quant_conv")) else 1
        for to, of in zip(tensor.chunk(halves), given.chunk(halves), strict=True):
            columns = tuple(slice(side) for side in of.shape)
            to[columns].copy_(of)


class Trainer:
    """What a checkpoint holds, and one training step."""

    def __init__(self, checkpoint: Path, phases: Sequence[Phase], start: Path | None) -> None:
        self.checkpoint, self.phases = checkpoint, phases
        self.model = DemoModel()
        self.ema = DemoModel()
        self.step, self.phase_index, self.elapsed_s = 0, 0, 0.0
        state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.step, self.phase_index, self.elapsed_s = (state[k] for k in ("step", "phase_index", "elapsed_s"))
        else:
            if start is not None:
                start_from(self.model.vae, start)
            self.ema.load_state_dict(self.model.state_dict())
        self.optimizer = self._optimizer()
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def phase(self) -> Phase:
        return self.phases[self.phase_index]

    def _optimizer(self) -> torch.optim.AdamW:
        """The parameters of the phase, every group with its share of the rate; all others frozen."""
        vae, decoder = (
            self.model.vae,
            [*self.model.vae.decoder.parameters(), *self.model.vae.post_quant_conv.parameters()],
        )
        unet = [*self.model.unet.parameters(), self.model.context]
        groups = {
            "autoencoder": [(list(vae.parameters()), 1.0)],
            "unet": [(unet, 1.0)],
            "decoder": [(unet, 1.0), (decoder, DECODER_RATE)],
            "together": [(unet, 1.0), (list(vae.parameters()), TOGETHER_RATE)],
            "finish": [(unet, 1.0), (list(vae.parameters()), TOGETHER_RATE)],
        }[self.phase.name]
        self.model.requires_grad_(False)
        for parameters, _ in groups:
            for parameter in parameters:
                parameter.requires_grad_(True)
        return torch.optim.AdamW(
            [{"params": parameters, "share": share} for parameters, share in groups],
            betas=(0.9, 0.98),
            weight_decay=1e-4,
            fused=True,
        )

    @torch.no_grad()
    def _scale_latents(self, pictures: Sequence[Pixels]) -> None:
        _, originals = training_batch(pictures, Phase("scale", 0, 0, batch=64, patch_px=64), 0)
        self.ema.latent_scaling_factor.fill_(round(1 / float(self.ema.encode(originals).std()), 4))

    def next_phase(self, pictures: Sequence[Pixels]) -> bool:
        """Begin the next phase with the averaged weights; False where there is none."""
        if self.phase_index + 1 == len(self.phases):
            return False
        if self.phase.name == "autoencoder":
            self._scale_latents(pictures)
        self.phase_index, self.elapsed_s = self.phase_index + 1, 0.0
        self.model.load_state_dict(self.ema.state_dict())
        self.optimizer = self._optimizer()
        return True

    def _loss(self, inputs: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        model, penalty = self.model, torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            if self.phase.name == "autoencoder":
                wanted = torch.cat([originals, inputs[: len(inputs) // 2]])
                latent = model.encode(wanted)
                penalty = LATENT_PENALTY * latent.float().square().mean()
                outputs = model.decode(latent)
            elif self.phase.name in ("decoder", "together", "finish") and self.step % AUTOENCODER_EVERY == 0:
                half = len(inputs) // 2
                wanted = torch.cat([originals[:half], inputs[half:]])
                outputs = model(wanted, False)
            else:
                wanted = originals
                outputs = model(inputs)
        error = outputs.float() - wanted
        return error.abs().mean() + self.phase.square * error.square().mean() + penalty

    def train_step(self, inputs: torch.Tensor, originals: torch.Tensor) -> float:
        start = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.rate_after(self.elapsed_s) * group["share"]
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
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "phase_index": self.phase_index,
                "elapsed_s": self.elapsed_s,
            },
            temporary,
        )
        temporary.replace(self.checkpoint)


@click.command()
@click.option("--kodak", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--wallpapers", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option("--export", "export_folder", type=click.Path(path_type=Path), required=True)
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="A VAE's weights to begin from.")
@click.option("--autoencoder-minutes", type=float, default=11.0, show_default=True)
@click.option("--unet-minutes", type=float, default=9.0, show_default=True)
@click.option("--decoder-minutes", type=float, default=7.0, show_default=True)
@click.option("--together-minutes", type=float, default=23.0, show_default=True)
@click.option("--finish-minutes", type=float, default=6.0, show_default=True)
def main(
    *,
    kodak: Path,
    wallpapers: Path,
    work: Path,
    export_folder: Path,
    start: Path | None,
    autoencoder_minutes: float,
    unet_minutes: float,
    decoder_minutes: float,
    together_minutes: float,
    finish_minutes: float,
) -> None:
    """Train, resume, export."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(17)
    phases = (
        Phase("autoencoder", autoencoder_minutes, rate=1.5e-3, batch=12, patch_px=64),
        Phase("unet", unet_minutes, rate=1e-3, batch=16, patch_px=64),
        Phase("decoder", decoder_minutes, rate=5e-4, batch=8, patch_px=96),
        Phase("together", together_minutes, rate=6e-4, batch=8, patch_px=96),
        Phase("finish", finish_minutes, rate=3e-4, batch=8, patch_px=96, mixed_share=0.15, square=5.0),
    )
    trainer = Trainer(work / "checkpoint.pt", phases, start)
    pictures = load_training_pictures(kodak, wallpapers)
    while True:
        train_phase(trainer, pictures, kodak)
        trainer.save()
        if not trainer.next_phase(pictures):
            break
    export_model(trainer.ema, export_folder)
    click.echo(f"exported {export_folder}: {held_out_psnr_db(trainer.ema, kodak)}")


def train_phase(trainer: Trainer, pictures: Sequence[Pixels], kodak: Path) -> None:
    phase, losses = trainer.phase, []
    for inputs, originals in training_batches(pictures, phase, trainer.step):
        if trainer.elapsed_s >= phase.minutes * 60:
            return
        losses.append(trainer.train_step(inputs, originals))
        if trainer.step % 500 == 0:
            trainer.save()
            click.echo(
                f"{phase.name}: step {trainer.step} {trainer.elapsed_s / 60:.1f} min loss {np.mean(losses):.4f} "
                f"psnr_y {held_out_psnr_db(trainer.ema, kodak)}"
            )
            losses.clear()


if __name__ == "__main__":
    main()
