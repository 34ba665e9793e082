"""Smooth and flat pictures: what they are, and that no layer's grid misses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intsr.calib.calibration.types import Clipped
from intsr.calib.data.crops import Crops
from intsr.calib.data.made_pictures import guard_pictures, smooth_tiles
from intsr.calib.data.pictures import guard_batch, guard_side_px
from intsr.calib.learn.blocks import ActivationStatistics
from intsr.calib.learn.initialize import RangeInit, set_ranges
from intsr.calib.learn.quantized_layer import quantized_layers
from intsr.calib.methods.maxmin import observe_maxmin
from intsr.calib.models.families.sd21 import reads_bare_stream
from intsr.calib.models.open import SRModel
from intsr.calib.observe.clipped import ClippedObserver, clipped_shares
from intsr.types import Bits


@pytest.mark.parametrize("side_px", [8, 33])
def test_they_are_pictures_of_any_size_and_the_same_every_time(side_px: int) -> None:
    guard, again = guard_pictures(side_px), guard_pictures(side_px)
    assert len(guard) == 14 and len(smooth_tiles(side_px)) == 8
    for picture, same in zip(guard, again, strict=True):
        assert picture.shape == (side_px, side_px, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, same)
    assert any((a != b).any() for a, b in zip(guard, guard_pictures(side_px, seed=1), strict=True))


def test_calibration_does_not_see_what_engines_are_verified_on() -> None:
    guard = {picture.tobytes() for picture in guard_pictures(32)}
    shared = [name for name, picture in smooth_tiles(32).items() if picture.tobytes() in guard]
    assert shared == ["black", "white", "red", "blue"]


def test_gradients_reach_both_ends_and_pages_hold_both_inks() -> None:
    guard = guard_pictures(64)
    assert min(int(picture.min()) for picture in guard) == 0 and max(int(picture.max()) for picture in guard) == 255
    spans = [np.ptp(picture.astype(int), axis=(0, 1)).max() for picture in guard]
    assert sum(span == 0 for span in spans) == 5  # flat ones
    text = smooth_tiles(64)["text"]
    assert text.min() < 60 and (text == 255).mean() > 0.7


def test_guard_crops_join_training_and_judging_by_a_share() -> None:
    x = torch.zeros(1, 3, 8, 8)
    crops = Crops((x,) * 16, (x,) * 4, (x,) * 12)
    assert crops.train_indices == [*range(16), 20, 22, 24, 26]
    assert crops.held_out_indices == [16, 17, 18, 19, 21]
    assert crops.guard_indices == list(range(20, 32))
    bare = Crops((x,) * 16, (x,) * 4)
    assert (bare.train_indices, bare.held_out_indices) == (list(range(16)), list(range(16, 20)))


@pytest.mark.parametrize("part", ["conv_shortcut", "conv1"])
def test_no_clip_search_below_what_the_guard_needs(tiny_model, part):
    """Rare far values that a search would clip: all of them stay on a bare stream, their mean elsewhere."""
    layers = quantized_layers(tiny_model, Bits(4, 4), ("vae",), let="none")
    layer = next(layer for site, layer in layers.items() if site.endswith(part))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, layer.grid.spec.channels, 16, 16, generator=generator)
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    ends = []
    # Two pictures, the one reaching four times as far as what is searched on, the other six times.
    for guard in (None, (torch.stack([low * 4, low * 6]), torch.stack([high * 4, high * 6]))):
        set_ranges([layer], ActivationStatistics((x,), low, high, guard), RangeInit("output"), generator)
        ends.append(tuple(float(end.detach()) for end in layer.grid.range()))
    factor = 6 if reads_bare_stream(layer.site) else 5
    assert ends[1] == pytest.approx((factor * float(low.min()), factor * float(high.max())))
    assert ends[0][1] < float(high.max())


def test_clipped_shares_are_counted(tiny_model: SRModel) -> None:
    site = "vae.encoder.down_blocks.0.resnets.0.conv1"
    quantizer = observe_maxmin(tiny_model, [torch.zeros(1, 3, 32, 32)], Bits(8, 8), ("vae",))[site]
    layer = tiny_model.vae.encoder.down_blocks[0].resnets[0].conv1
    observer = ClippedObserver(layer, quantizer)
    x = torch.zeros(1, layer.in_channels, 4, 4)
    x[0, 0, 0, :3] = quantizer.x_max * 2 + 1
    observer(layer, (x,))
    assert (observer.outside, observer.count) == (3, x.numel())


def test_both_shares_are_there_for_every_integer_layer(tiny_model: SRModel, demo_picture) -> None:
    batches = list(guard_batch(tiny_model.spec, guard_side_px(tiny_model.spec, 16)).split(4))
    sites = observe_maxmin(tiny_model, batches, Bits(8, 8), ("unet", "vae"))
    shares = clipped_shares(tiny_model, sites, [demo_picture], 16, 0)
    assert set(shares) < set(sites) and all(isinstance(value, Clipped) for value in shares.values())
    assert all(0 <= value.pictures < 1 and 0 <= value.guard < 1 for value in shares.values())
    narrow = {site: type(q)(q.x_min / 8, q.x_max / 8, 8, 8) for site, q in sites.items()}
    assert max(v.guard for v in clipped_shares(tiny_model, narrow, [demo_picture], 16, 0).values()) > 0.05
