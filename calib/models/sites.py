"""The layers of a model by site, and which of them engines run on integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from intsr.calib.models.families.sd21 import FLOAT_SITES, is_constant
from intsr.calib.models.modules import layers_of

if TYPE_CHECKING:
    from intsr.calib.models.open import SRModel


def sites_of_model(model: SRModel, parts: tuple[str, ...]) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return every Conv2d and Linear of the parts (`unet`, `vae`) by site name, in module order."""
    return {f"{part}.{name}": layer for part in parts for name, layer in layers_of(getattr(model, part)).items()}


def head_channels(model: SRModel, site: str) -> int:
    """Return the channels of one head of the attention that `site` belongs to."""
    part, _, name = site.partition(".")
    attention: Any = getattr(model, part).get_submodule(name.rpartition(".")[0])
    return int(attention.to_v.out_features // attention.heads)


def integer_sites(model: SRModel, parts: tuple[str, ...]) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the sites of `sites_of_model` that engines run on integers: what training is about."""
    return {
        site: layer
        for site, layer in sites_of_model(model, parts).items()
        if site not in FLOAT_SITES and not is_constant(site)
    }
