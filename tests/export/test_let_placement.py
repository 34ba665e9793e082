"""Where a LET goes, by names: the family's table against networks with every kind of block."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from folding import Modules

from intsr.calib.models.families.sd21 import LET_SINKS, let_maker, let_readers, let_sink
from intsr.calib.models.modules import layers_of
from intsr.export.fold.let_sites import explicit_sites


def test_every_site_that_a_norm_feeds(tiny_specialized: Modules) -> None:
    readers = {site for site in layers_of(tiny_specialized["unet"]) if let_readers(site)}
    block = "unet.mid_block.attentions.0"
    inside = f"{block}.transformer_blocks.0"
    expected = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj")
    assert {site for site in readers if site.startswith(block)} == {
        *(f"{inside}.{end}" for end in expected),
        f"{block}.proj_in",
    }
    attention = "vae.decoder.mid_block.attentions.0"
    assert let_readers(f"{attention}.to_k") == tuple(f"{attention}.to_{end}" for end in "qkv")
    assert let_readers(f"{inside}.attn2.to_q") == (f"{inside}.attn2.to_q",)
    assert let_readers(f"{inside}.attn2.to_v") == ()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("end", ["attn1.to_out.0", "attn2.to_out.0", "ff.net.2"])
def test_a_shift_does_not_follow_rows(end: str, shifted: bool) -> None:
    site = f"unet.mid_block.attentions.0.transformer_blocks.0.{end}"
    lets = {site: (np.full(16, 2, np.float32), np.full(16, shifted, np.float32))}
    assert explicit_sites(lets) == (frozenset(lets) if shifted else frozenset())


def test_it_needs_no_torch() -> None:
    families = ", ".join(
        f"intsr.calib.models.families.{name}" for name in ("sd21", "sd21_ldm", "architecture", "supported")
    )
    modules = f"intsr.export.fold.let_sites, intsr.engines.report.measure.layer_names, {families}"
    code = f"import sys; sys.modules['torch'] = sys.modules['diffusers'] = None; import {modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_layer_has_a_place_that_is_there_or_a_reason(tiny_specialized: Modules) -> None:
    met = set()
    for module in tiny_specialized.values():
        for site in layers_of(module):
            sink = let_sink(site)
            met.add(sink)
            assert (sink.into == "none") == bool(sink.why)
            if sink.into != "none":
                module.get_submodule(let_maker(site))
                assert all(reader in layers_of(module) for reader in let_readers(site))
    # Constants are gone from specialized networks.
    assert met == {sink for sink in LET_SINKS if "constant" not in sink.why}
