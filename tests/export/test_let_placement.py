"""The rule by names against the fusion itself, on networks with every kind of block."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from folding import Modules
from hypothesis import given, settings
from hypothesis import strategies as st

from intsr.calib.models.families.sites import runs_in_integers
from intsr.calib.models.modules import copy_sharing_weights, layers_of
from intsr.export.fold.let import Let, fuse_let
from intsr.export.fold.let_sites import explicit_sites, norm_readers
from intsr.kernels.quantizer import round_scale
from intsr.types import NETWORKS

Lets = dict[str, tuple[np.ndarray, np.ndarray]]


def random_lets(module: torch.nn.Module, seed: int, shift_share: float, left_out: float) -> Lets:
    """s and d of the module's integer sites: q, k and v share them half of the time, some sites have none."""
    rng = np.random.default_rng(seed)
    lets: Lets = {}
    for site, layer in layers_of(module).items():
        channels = layer.weight.shape[1]
        s = rng.uniform(0.1, 10, channels).astype(np.float32)
        d = (rng.normal(size=channels) * (rng.random() < shift_share)).astype(np.float32)
        sharer = lets.get(f"{site.rpartition('.')[0]}.to_q")
        if site.endswith(("to_k", "to_v")) and sharer is not None and rng.random() < 0.7:
            # Nearer than fp16 can tell apart, at times: engines then hold one and the same scale.
            s, d = sharer[0] * np.float32(1 + 1e-6 * rng.integers(0, 2)), d if rng.random() < 0.2 else sharer[1]
        if runs_in_integers(layer) and rng.random() >= left_out:
            lets[site] = (s, d)
    return lets


def explicit_by_fusion(module: torch.nn.Module, lets: Lets) -> frozenset[str]:
    """With the scales as `fold` rounds them."""
    values = {}
    for site, (s, d) in lets.items():
        rounded = 1 / torch.from_numpy(round_scale((1 / torch.from_numpy(s)).numpy()))
        values[site] = Let(rounded, torch.from_numpy(d))
    return fuse_let(copy_sharing_weights(module), values).explicit


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_fusion(tiny_specialized: Modules, name: str) -> None:
    module = tiny_specialized[name]
    seen = set()

    @given(seed=st.integers(0, 2**20), shift_share=st.sampled_from([0, 0.3, 1]), left_out=st.sampled_from([0, 0.2]))
    @settings(max_examples=20, deadline=None)
    def check(seed: int, shift_share: float, left_out: float) -> None:
        lets = random_lets(module, seed, shift_share, left_out)
        explicit = explicit_by_fusion(module, lets)
        assert explicit_sites(lets) == explicit
        seen.update((site.rpartition("_")[2], site in explicit) for site in lets if norm_readers(site))

    check()
    # Both answers have come up for the sites in question: the comparison had something to tell apart.
    assert {(end, answer) for end in ("q", "k", "v") for answer in (True, False)} <= seen


def test_every_site_that_a_norm_feeds(tiny_specialized: Modules) -> None:
    readers = {site for site in layers_of(tiny_specialized["unet"]) if norm_readers(site)}
    block = "unet.mid_block.attentions.0"
    inside = f"{block}.transformer_blocks.0"
    expected = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj")
    assert {site for site in readers if site.startswith(block)} == {
        *(f"{inside}.{end}" for end in expected),
        f"{block}.proj_in",
    }
    attention = "vae.decoder.mid_block.attentions.0"
    assert norm_readers(f"{attention}.to_k") == tuple(f"{attention}.to_{end}" for end in "qkv")
    assert norm_readers(f"{inside}.attn2.to_q") == (f"{inside}.attn2.to_q",)
    assert norm_readers(f"{inside}.attn2.to_v") == ()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("end", ["attn1.to_out.0", "attn2.to_out.0", "ff.net.2"])
def test_a_shift_does_not_follow_rows(end: str, shifted: bool) -> None:
    site = f"unet.mid_block.attentions.0.transformer_blocks.0.{end}"
    lets = {site: (np.full(16, 2, np.float32), np.full(16, shifted, np.float32))}
    assert explicit_sites(lets) == (frozenset(lets) if shifted else frozenset())


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import intsr.export.fold.let_sites"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
