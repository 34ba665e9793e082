"""Calibrate a model over a folder of pictures: one plain function from model and pictures to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import intsr
from intsr.calib.calibration.types import PARTS, Calibration, SiteQuantizer
from intsr.calib.data.crops import Crops, crops_from_pictures
from intsr.calib.data.pictures import calibration_batches, guard_batch, guard_side_px
from intsr.calib.learn.blocks import blocks_by_name
from intsr.calib.learn.journal import Journal
from intsr.calib.learn.method import PICTURE, VIDEO, Method
from intsr.calib.learn.perceptual import LPIPS, STRUCTURE, distance_from_file
from intsr.calib.learn.reverse import learn_reverse
from intsr.calib.learn.stages import Run, with_steps
from intsr.calib.learn.train import Report, TrainingOptions
from intsr.calib.learn.walk import learn
from intsr.calib.methods import method_from_name, methods
from intsr.calib.methods.maxmin import observe_maxmin, symmetric_range
from intsr.calib.models.families.sd21 import module_of_site, network_of_site
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.phases import in_phases, wide_upsamplers
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.sites import integer_sites
from intsr.calib.observe.clipped import CLIPPED_PICTURES, clipped_shares
from intsr.errors import UsageError
from intsr.files import sha256_from_path
from intsr.memory import peak_resident_bytes
from intsr.types import Bits, check_tile

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel
    from intsr.calib.models.video import VideoModel

W8A8 = Bits(8, 8)
DEFAULT_TRAINING = TrainingOptions()
DEVICES = ("cpu", "cuda")
Progress = Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to calibrate. Raises UsageError for what cannot be."""

    method: str = "maxmin"
    bits: Bits = W8A8
    # `unet`, `vae` or both; of a video model `transformer` and, or without, `vae`.
    parts: tuple[str, ...] = PARTS
    # Side of the low-resolution tiles looked at.
    tile_px: int = 128
    # Activation grids around 0, which TensorRT takes without a shift.
    symmetric: bool = False
    # Of the methods' branches; None for the method's own, 0 for none.
    rank: int | None = None
    # For methods that train: side of the training crops in low-resolution pixels, how many, and how long.
    crop_px: int = 32
    crops: int = 48
    training: TrainingOptions = DEFAULT_TRAINING
    # Of every random choice.
    seed: int = 0
    device: str = "cpu"
    # Whether `made_pictures` are looked at, too.
    guard: bool = True
    # LPIPS's weights, for methods that train on pictures.
    lpips: Path | None = None
    # The method in other parts than its own, for comparisons; None for as it is.
    plan: Method | None = None

    def __post_init__(self) -> None:
        able = methods(self.kind)
        if self.method not in able:
            got = f"{self.method} of a {self.kind} model" if self.method in methods() else repr(self.method)
            raise UsageError("--method", got, f"one of {', '.join(able)}")
        if not self.bits.quantized:
            raise UsageError("--bits", "fp", "wXaY: full precision needs no calibration")
        if self.device not in DEVICES:
            raise UsageError("--device", repr(self.device), f"one of {', '.join(DEVICES)}")
        # What only some methods have.
        for option, given, has in (("--rank", self.rank, "rank"), ("--lpips", self.lpips, "whole")):
            if given is not None and not getattr(able[self.method], has):
                others = " or ".join(method.name for method in able.values() if getattr(method, has))
                raise UsageError(option, f"together with --method {self.method}", f"--method {others}")

    @property
    def kind(self) -> str:
        """Of model, PICTURE or VIDEO."""
        return VIDEO if VIDEO_PARTS[0] in self.parts else PICTURE

    @property
    def stages(self) -> Method:
        """The method, on the grids that are asked for."""
        return self.plan or method_from_name(self.method, self.symmetric, self.rank)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Training steps of each block's stages together, of each network's, and of all three networks'."""
        of_block, of_networks = self.training.block_steps, self.training.joint_steps
        given = ((of_block, self.stages.block), (of_networks, self.stages.joint), (of_networks, self.stages.whole))
        block, joint, whole = (
            sum(own * stage.rounds for stage, own in with_steps(stages, steps)) for steps, stages in given
        )
        return block, joint, whole

    @property
    def trains(self) -> bool:
        return self.stages.trains


def parse_parts(text: str) -> tuple[str, ...]:
    """`unet,vae` in any order -> names in their usual order. Raises UsageError."""
    return _parts(text, PARTS, (), f"some of {', '.join(PARTS)}, separated by commas")


def parse_video_parts(text: str) -> tuple[str, ...]:
    """`transformer,vae` in any order, or `transformer` -> names in their usual order. Raises UsageError."""
    return _parts(text, VIDEO_PARTS, VIDEO_PARTS[:1], "transformer,vae or transformer, of a video model")


def _parts(text: str, known: Sequence[str], needed: Sequence[str], expected: str) -> tuple[str, ...]:
    given = [name.strip() for name in text.split(",")]
    if not set(needed) <= set(given) <= set(known) or len(set(given)) != len(given):
        raise UsageError("--parts", repr(text), expected)
    return tuple(part for part in known if part in given)


def calibrate(
    model: SRModel,
    pictures: Sequence[Path],
    recipe: Recipe,
    *,
    progress: Progress = lambda batches: batches,
    report: Report = lambda phase, steps, loss: None,
    work: Path | None = None,
) -> Calibration:
    """Run the recipe's method over low-resolution `pictures`.

    progress: of methods that look once; report: of methods that train, called with the phase, how many steps were
    done, and the loss. work: folder from which an interrupted training goes on, not touched by other methods; the
    caller removes it with `journal.remove_work` once the result is saved.

    Raises ImageError, UsageError, CalibrationError. See `usable_pictures` for pictures that show nothing.
    """
    check_tile(recipe.tile_px, model.spec.upscale_factor, model.spec.size_multiple_px)
    digests = [sha256_from_path(path) for path in pictures] if recipe.trains else []
    identity = identity_of_run(model, digests, recipe) if recipe.trains else {}
    phases = wide_upsamplers(model)
    model = in_phases(model, phases)
    curves: Mapping[str, list[list[float]]] = {}
    with closing(Journal(work if recipe.trains else None, identity)) as journal:
        if recipe.trains:
            crops = crops_of_recipe(model, pictures, recipe)
            distance = distance_from_file(recipe.lpips, recipe.device)
            run = Run(recipe.stages, recipe.training, recipe.seed, journal, report, crops, distance)
            sites, curves = _trained_sites(model, recipe, run)
        else:
            batches = progress(calibration_batches(pictures, model.spec, recipe.tile_px))
            side_px = guard_side_px(model.spec, recipe.tile_px)
            guard = guard_batch(model.spec, side_px, recipe.seed).split(1) if recipe.guard else ()
            observe = recipe.stages.observe
            assert observe is not None
            sites = observe(model, batches, recipe.bits, recipe.parts, guard)
            if recipe.symmetric:
                sites = {site: symmetric_range(quantizer) for site, quantizer in sites.items()}
    return Calibration(
        method=recipe.method,
        bits=recipe.bits,
        parts=recipe.parts,
        model=model.spec.name,
        model_digest=model.digest,
        pictures=len(pictures),
        tile_px=recipe.tile_px,
        seconds=round(journal.seconds, 3),
        peak_bytes=peak_resident_bytes(),
        sites=sites,
        curves=curves,
        phases=tuple(site for site in phases if site in sites),
        perceptual="" if not recipe.stages.whole else LPIPS if recipe.lpips else STRUCTURE,
        clipped=clipped_shares(model, sites, pictures[:CLIPPED_PICTURES], recipe.tile_px, recipe.seed),
    )


def crops_of_recipe(model: SRModel, pictures: Sequence[Path], recipe: Recipe) -> Crops:
    """The training crops. Raises UsageError, ImageError."""
    return crops_from_pictures(
        pictures,
        model.spec,
        tile_px=recipe.tile_px,
        crop_px=recipe.crop_px,
        count=recipe.crops,
        batch=recipe.training.batch,
        seed=recipe.seed,
        guard=recipe.guard,
    )


def steps_of_recipe(model: SRModel, recipe: Recipe) -> int:
    """Training steps in all, for a progress bar; 0 for methods that do not train."""
    if not recipe.trains:
        return 0
    sites = integer_sites(model, recipe.parts)
    networks = reference_networks(model)
    of_network = {name: [site for site in sites if network_of_site(site) == name] for name in networks}
    units = {block for name, own in of_network.items() for block in blocks_by_name(networks[name], own)}
    if recipe.stages.reverse:
        units = {module_of_site(block) for block in units}
    of_block, of_one, of_all = recipe.steps
    return len(units) * of_block + sum(map(bool, of_network.values())) * of_one + of_all


def _trained_sites(
    model: SRModel, recipe: Recipe, run: Run
) -> tuple[dict[str, SiteQuantizer], dict[str, list[list[float]]]]:
    """Learned numbers for what runs in integers, MaxMin's for every other site of the parts."""
    sites = observe_maxmin(model, run.crops.train, recipe.bits, recipe.parts)
    walk = learn_reverse if recipe.stages.reverse else learn
    layers, curves = walk(model, recipe.bits, recipe.parts, run, recipe.device)
    learned = {site: layer.site_quantizer() for site, layer in layers.items()}
    return {site: learned.get(site, quantizer) for site, quantizer in sites.items()}, curves


def identity_of_run(model: SRModel | VideoModel, pictures: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the result; what only decides how it is reached is left out.

    pictures: their digests.
    """
    training = asdict(replace(recipe.training, cache="ram", recompute=False))
    settings = {key: str(value) for key, value in {**asdict(recipe), **training}.items() if key != "training"}
    return {
        **settings,
        **({"lpips": sha256_from_path(recipe.lpips)} if recipe.lpips else {}),
        "bits": repr(recipe.bits) if recipe.bits.rules else str(recipe.bits),
        "model": model.digest,
        "pictures": list(pictures),
        # The order of a sum depends on how many threads share it.
        "threads": torch.get_num_threads(),
        "version": intsr.__version__,
        "torch": str(torch.__version__),
        # What is trained in which order: phases of another method may go by the same names.
        "plan": repr(recipe.stages),
    }
