"""Copies of a model that differ in their files alone have the same digest, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ldm
import pytest
from safetensors.torch import load_file, save_file

from intsr.calib.models.families.architecture import ARCHITECTURES, Architecture
from intsr.calib.models.weight_facts import WeightFacts, weight_facts

WHOLE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In numbers that fp16 holds, as the originals' fp16 variants are rounded from fp32."""
    for part, network in zip(("unet", "vae"), ldm.small_sd21(), strict=True):
        network.half().float().save_pretrained(tmp_path / "base" / part)
    return tmp_path / "base"


def facts(path: Path) -> list[WeightFacts]:
    return list(weight_facts(str(path)))


def test_copies_in_other_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    expected = facts(folder)
    assert [each.part for each in expected] == ["unet", "vae"]
    unet, vae = (load_file(folder / part / WHOLE) for part in ("unet", "vae"))
    state = ldm.ldm_state(*ldm.small_sd21())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "single.safetensors")
    assert facts(tmp_path / "single.safetensors") == expected
    # fp16, and the VAE's attention as it was called when SD 2.1 was saved.
    save_file({name: t.half() for name, t in unet.items()}, folder / "unet" / WHOLE, metadata={"format": "pt"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for now, then in old.items():
        vae = {name.replace(f".{now}.", f".{then}.") if "attentions" in name else name: t for name, t in vae.items()}
    assert any("proj_attn" in name for name in vae)
    save_file(vae, folder / "vae" / WHOLE, metadata={"format": "pt"})
    assert facts(folder) == expected


def test_another_value_is_another_model(folder: Path) -> None:
    before = facts(folder)
    path = folder / "unet" / WHOLE
    tensors = load_file(path)
    tensors["conv_in.bias"][0] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    after = facts(folder)
    assert before[0].sha256_fp16 != after[0].sha256_fp16 and before[1] == after[1]


def test_the_command(
    intsr: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = intsr("info", folder, "--digests", "--size", 64)
    assert code == 0 and out.count("of no known architecture; in fp16 sha256 ") == 2
    configs = [json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")]
    monkeypatch.setitem(ARCHITECTURES, "sd21", Architecture("sd21", *configs))
    code, out, _ = intsr("info", folder, "--digests", "--size", 64, "--json")
    weights = json.loads(out)["weights"]
    assert code == 0 and [each["layout"] for each in weights] == ["sd21", "sd21"]
    assert weights[0]["sha256_fp16"] == facts(folder)[0].sha256_fp16
    code, _, err = intsr("info", "--arch", "sd21", "--digests")
    assert code == 2 and "--digests: no weights to read" in err
