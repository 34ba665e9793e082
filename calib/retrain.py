"""A model moved to another timestep: LoRA on its UNet, trained to make what the model made at its own (QArtSR's TRQ).

x0 = (z - sqrt(1 - a) e) / sqrt(a) amplifies what quantization does to e by sqrt((1 - a) / a), 14.6 at t = 999 and
0.04 at t = 1; in exchange e must be as much larger for the same correction, so that which timestep is best is a
matter of trying. The teacher is the model itself, in full precision. The student starts as near to it as its form
allows: the time embedding of t gives what that of the old timestep gave, and conv_out is scaled so that what e takes
from x0 stays what it was. What is left is z (1 / sqrt(a) - 1 / sqrt(a_old)), for training to take away.
docs/theory.md, "Another timestep".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import intsr
from intsr.calib.calibration.types import PhaseName
from intsr.calib.data.crops import crops_from_pictures
from intsr.calib.learn.block_data import KnownPairs
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.perceptual import distance_from_file
from intsr.calib.learn.quantized_layer import Branch
from intsr.calib.learn.stages import check_device, mean_loss, mean_square, outputs
from intsr.calib.learn.train import Phase, Report, learned_state, restore_state, train
from intsr.calib.learn.whole import PERCEPTUAL_WEIGHT, PICTURE_WEIGHT
from intsr.calib.models.modules import layers_of, put_modules
from intsr.calib.models.prompt import CONTEXT_NAME
from intsr.calib.models.reference import ReferenceUNet, reference_networks
from intsr.calib.models.save import NetworkFiles, write_model
from intsr.calib.models.spec import SPEC_SCHEMA_VERSION, ModelSettings, alpha_bar_from_scheduler, diffusion_spec
from intsr.errors import ModelError, UsageError
from intsr.files import sha256_from_path
from intsr.kernels.layer_algebra import branch_weight, run_layer

if TYPE_CHECKING:
    from intsr.calib.models.open import ModelSource, SRModel

PHASE = PhaseName("unet", "", "retrain")
# Adam's, of the LoRA.
RATE = 1e-3


@dataclass(frozen=True, slots=True)
class RetrainRecipe:
    """How to retrain. timestep: the new one; None for `nearest_timestep`."""

    timestep: int | None
    rank: int = 16
    steps: int = 600
    crop_px: int = 32
    crops: int = 192
    batch: int = 4
    # A factor on RATE.
    rate: float = 1.0
    # LPIPS's weights.
    lpips: Path | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Retrained:
    """The student. unet: its weights by name. start, end: its loss on held-out crops, before training and after."""

    timestep: int
    alpha_bar: float
    unet: Mapping[str, torch.Tensor]
    start: float
    end: float
    seconds: float


class LoraLayer(nn.Module):
    """A Conv2d or Linear with weights W + B A; B = 0 at first, A as a linear layer starts."""

    def __init__(self, site: str, layer: nn.Conv2d | nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.site, self.layer = site, layer
        self.change = Branch(layer.weight, min(rank, *layer.weight.shape[:2]))
        bound = 1 / math.sqrt(layer.weight[0].numel())
        down = (torch.rand(self.change.down.shape, generator=generator) * 2 - 1) * bound
        self.change.down = nn.Parameter(down.to(layer.weight.device))

    def weight(self) -> torch.Tensor:
        """W + B A, the layer's shape."""
        return self.layer.weight + branch_weight(self.change.up, self.change.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run_layer(self.layer, x, self.weight(), self.layer.bias)


def nearest_timestep(alpha_bars: Sequence[float], latents: torch.Tensor, clean: torch.Tensor) -> int:
    """Return the timestep at which the scheduler's noise is as strong as what `latents` lack of `clean`.

    t with the least mean over crops of |a E[z_H^2] / (1 - a) - E[z_H^2] / E[(z - z_H)^2]|, OMGSR's rule. alpha_bars:
    of every timestep. latents, clean: z and z_H, (N, C, h, w) float32 each.
    """
    energy = clean.square().mean((1, 2, 3)).double()
    wanted = energy / (latents - clean).square().mean((1, 2, 3)).double().clamp_min(1e-12)
    distances = [float((energy * (a / (1 - a)) - wanted).abs().mean()) for a in alpha_bars]
    return min(range(len(distances)), key=distances.__getitem__)


def retrain(
    source: ModelSource,
    pictures: Sequence[Path],
    recipe: RetrainRecipe,
    *,
    tile_px: int,
    report: Report = lambda phase, steps, loss: None,
    work: Path | None = None,
) -> Retrained:
    """Train the LoRA on low-resolution `pictures`.

    tile_px: a crop's side at most. report, work: as `calibrate`'s. Raises UsageError, ImageError, ModelError for a
    model without a timestep, of another x0 rule than epsilon, and a timestep that the scheduler has not,
    CalibrationError.
    """
    check_device(recipe.device)
    spec = diffusion_spec(source.spec)
    if spec.x0_rule != "epsilon":
        raise ModelError(spec.name, f"x0 by the rule {spec.x0_rule}", "epsilon, which is retrained")
    distance, model = distance_from_file(recipe.lpips, recipe.device), source.load()
    steps = range(source.scheduler["num_train_timesteps"])
    alpha_bars = [alpha_bar_from_scheduler(source.scheduler, t, Path(source.spec.name)) for t in steps]
    crops = crops_from_pictures(
        pictures,
        model.spec,
        tile_px=tile_px,
        crop_px=recipe.crop_px,
        count=recipe.crops,
        batch=recipe.batch,
        seed=recipe.seed,
        guard=True,
    )
    networks = {name: network.to(recipe.device) for name, network in reference_networks(model).items()}
    latents = outputs(networks["encoder"], [crop.to(recipe.device) for crop in crops.all])
    targets = outputs(networks["unet"], latents)
    timestep = recipe.timestep
    if timestep is None:
        timestep = nearest_timestep(alpha_bars, torch.cat(latents), torch.cat(targets))
    elif timestep not in steps:
        raise UsageError("--timestep", str(timestep), f"0 to {steps[-1]}, or auto")
    to_latents = KnownPairs(latents, targets)
    to_pictures = KnownPairs(latents, outputs(networks["decoder"], targets))
    held_out = crops.held_out_indices
    energies = [mean_square(pairs.batch([i])[1] for i in held_out) for pairs in (to_latents, to_pictures)]
    student, layers = _student(model, timestep, alpha_bars[timestep], recipe)

    def loss(indices: Sequence[int], _: int = 0) -> torch.Tensor:
        (x, target), (_, exact) = to_latents.batch(indices), to_pictures.batch(indices)
        y = student(x)
        picture = networks["decoder"](y)
        errors = (y - target).square().mean() / energies[0], (picture - exact).square().mean() / energies[1]
        return errors[0] + PICTURE_WEIGHT * errors[1] + PERCEPTUAL_WEIGHT * distance(picture, exact)

    parameters = tuple(p for layer in layers for p in layer.change.parameters())
    rates = ((parameters, RATE * recipe.rate),)
    phase = Phase(PHASE, layers, rates, recipe.steps, loss, lambda: mean_loss(loss, held_out))
    with closing(Journal(work, _identity(source, pictures, recipe))) as journal:
        done, _ = journal.step(
            str(PHASE),
            lambda: {
                "curve": train(
                    phase, journal, recipe.seed, crops=crops.train_indices, batch=recipe.batch, report=report
                ),
                "layers": learned_state(layers),
            },
        )
        restore_state(layers, done["layers"])
        seconds = journal.seconds
    put_modules(student, {layer.site: _merged(layer) for layer in layers})
    tensors = {name: tensor.detach().cpu() for name, tensor in student.unet.state_dict().items()}
    losses = [judged for _, _, judged in done["curve"]]
    return Retrained(timestep, alpha_bars[timestep], tensors, losses[0], min(losses), seconds)


@torch.no_grad()
def _student(
    model: SRModel, timestep: int, alpha_bar: float, recipe: RetrainRecipe
) -> tuple[ReferenceUNet, tuple[LoraLayer, ...]]:
    """The UNet at another timestep, as near to the old one as it can be, and its LoRA."""
    student = ReferenceUNet(model)
    unet, old = student.unet, diffusion_spec(model.spec)
    # What diffusers makes of a timestep before its first layer.
    first = unet.time_embedding.linear_1
    was, now = (unet.time_proj(torch.tensor([t], device=first.weight.device))[0] for t in (old.timestep, timestep))
    first.weight = nn.Parameter(first.weight + torch.outer(first.weight @ (was - now), now) / now.square().sum())
    gains = [math.sqrt((1 - a) / a) for a in (old.alpha_bar, alpha_bar)]
    for name in ("weight", "bias"):
        setattr(unet.conv_out, name, nn.Parameter(getattr(unet.conv_out, name) * gains[0] / gains[1]))
    student.timestep, student.alpha_bar = timestep, alpha_bar
    student.to(recipe.device).requires_grad_(False)
    generator = torch.Generator().manual_seed(recipe.seed)
    layers = tuple(LoraLayer(name, layer, recipe.rank, generator) for name, layer in layers_of(student).items())
    put_modules(student, {layer.site: layer for layer in layers})
    return student, layers


@torch.no_grad()
def _merged(layer: LoraLayer) -> nn.Conv2d | nn.Linear:
    layer.layer.weight = nn.Parameter(layer.weight(), requires_grad=False)
    return layer.layer


def write_retrained(source: ModelSource, result: Retrained, folder: Path) -> int:
    """Write the student as a model like any other, fp16; returns its bytes.

    Raises ModelError where fp16 cannot hold its weights, UsageError where the folder exists.
    """
    spec = source.spec
    settings = ModelSettings(
        SPEC_SCHEMA_VERSION,
        f"{spec.name}-t{result.timestep}",
        result.timestep,
        spec.upscale_factor,
        spec.resize_filter,
        CONTEXT_NAME,
        spec.licence,
        spec.synthetic,
        x0_rule=diffusion_spec(spec).x0_rule,
        family=spec.defaults.family,
        prompt=spec.prompt,
    )
    vae = source.load("vae").vae.state_dict()
    networks: list[NetworkFiles] = []
    for part, tensors in (("unet", result.unet), ("vae", vae)):
        halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
        over = [name for name, tensor in halves.items() if not bool(tensor.isfinite().all())]
        if over:
            raise ModelError(folder, f"{part}.{over[0]} is beyond fp16's largest number", "another timestep")
        networks.append((part, source.networks[part].config, [partial(dict, halves)]))
    return write_model(folder, settings, networks, source.context, source.scheduler)


def _identity(source: ModelSource, pictures: Sequence[Path], recipe: RetrainRecipe) -> dict[str, Any]:
    """As a calibration's: everything that decides the result."""
    return {
        **{key: str(value) for key, value in asdict(recipe).items()},
        "plan": "retrain",
        **({"lpips": sha256_from_path(recipe.lpips)} if recipe.lpips else {}),
        "model": source.digest,
        "pictures": [sha256_from_path(path) for path in pictures],
        "threads": torch.get_num_threads(),
        "version": intsr.__version__,
        "torch": str(torch.__version__),
    }
