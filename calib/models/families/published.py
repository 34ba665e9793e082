"""The families whose files are read, and those that no single engine can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from intsr.calib.models.families import hypir, omgsr, osediff, pisasr
from intsr.calib.models.families.family import Family, Lora
from intsr.calib.models.tensor_files import Checkpoint, read_checkpoint
from intsr.errors import ModelError, UsageError
from intsr.types import SYNTHETIC_NOTE

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (osediff, hypir, pisasr, omgsr)}
TITLES = ", ".join(family.title for family in FAMILIES.values())
EXPECTED = f"a LoRA of {TITLES}"


def _starts(*prefixes: str) -> Callable[[Checkpoint], bool]:
    return lambda checkpoint: any(name.startswith(prefixes) for name in checkpoint.tensors)


# Whose file it is, how it is known, and why it is refused. Before the families: their files have common keys.
REFUSED: tuple[tuple[str, Callable[[Checkpoint], bool], str], ...] = (
    (
        "S3Diff's LoRA",
        _starts("state_dict_unet_de_mlp.", "state_dict_vae_de_mlp."),
        "its weights are computed for each picture from how degraded it is, and its guidance takes two networks",
    ),
    (
        "InvSR's noise predictor",
        _starts("encoder.conv_in.weight", "state_dict.encoder.conv_in.weight"),
        "the noise that it predicts for each picture is drawn at random, and is an input of the UNet",
    ),
    ("AdcSR's networks", _starts("module.body."), "they are a whole model, no LoRA: their folder is a MODEL"),
    ("a LoRA in kohya's format", _starts("lora_unet_", "lora_te_"), "no one-step model is published in it"),
    ("one PEFT adapter", _starts("base_model.model."), "OMGSR-S has two: give the folder that holds both"),
)


def family_of(checkpoint: Checkpoint) -> Family | None:
    """Return the family that the file is meant to be of."""
    return next((family for family in FAMILIES.values() if family.claims(checkpoint)), None)


def read_lora(path: Path, pisa_weights: tuple[float, float] | None = None) -> Lora:
    """Read a family's file, or folder of adapters, whichever it is.

    pisa_weights: of PiSA-SR's two LoRAs. Raises ModelError: of no family, not exactly as the family's files are, or
    broken; UsageError for weights beside another family, and weights that take two networks.
    """
    checkpoint = omgsr.read_adapters(path) if path.is_dir() else read_checkpoint(path)
    for title, is_it, why in REFUSED:
        if is_it(checkpoint):
            raise ModelError(path, f"{title}: {why}", EXPECTED)
    family = family_of(checkpoint)
    if family is None:
        first = ", ".join(sorted(checkpoint.tensors)[:2])
        raise ModelError(path, f"no LoRA of a known family (it has {first}, ...)", EXPECTED)
    if pisa_weights is None:
        lora = family.read(checkpoint)
    elif family is pisasr.FAMILY:
        lora = pisasr.read_weighted(checkpoint, *pisa_weights)
    else:
        raise UsageError("--pisa-weights", f"together with {family.title}'s LoRA", "PiSA-SR's")
    return replace(lora, synthetic=checkpoint.note == SYNTHETIC_NOTE)
