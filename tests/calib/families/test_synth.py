"""Random weights in the families' published formats: at real size by shapes alone, small ones for real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from intsr.calib.models.families.adcsr import DEFAULTS
from intsr.calib.models.families.architecture import SD21, Architecture
from intsr.calib.models.families.published import FAMILIES, read_lora
from intsr.calib.models.open import load_model
from intsr.calib.models.reference import reference_networks
from intsr.calib.models.synth import base_shapes, write_synthetic_lora, write_synthetic_model
from intsr.calib.models.weights import empty_network
from intsr.errors import UsageError
from intsr.files import sha256_from_path
from intsr.types import FAMILY_NAMES, SYNTHETIC_NOTE


@pytest.fixture(scope="module")
def small() -> Architecture:
    unet, vae = families.small_networks()
    configs: list[dict[str, Any]] = [{**network.config} for network in (unet, vae)]
    return Architecture("small", *configs, context_tokens=5)


@pytest.fixture(scope="module")
def base(small: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_model(small, tmp_path_factory.mktemp("synthetic") / "base").folder


def keys(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a full-size file's LoRA, by our own description of it."""
    content = FAMILIES[family].make(base_shapes(SD21), lambda _, shape: torch.empty(shape, device="meta"))
    state = {"pisasr": "state_dict_unet", "osediff": "state_dict_unet"}.get(family)
    return {name: tuple(t.shape) for name, t in (content[state] if state else content).items() if "lora" in name}


def pefts_own(rank: int, **targets: list[str]) -> dict[str, tuple[int, ...]]:
    """The same by PEFT, which is given SD 2.1's UNet. targets: adapter -> target_modules."""
    unet = empty_network("unet", SD21.unet, Path("unet"))
    for adapter, modules in targets.items():
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules)
        unet = inject_adapter_in_model(config, unet, adapter_name=adapter, low_cpu_mem_usage=True)
    return {name: tuple(t.shape) for name, t in unet.state_dict().items() if "lora_" in name}


def test_hypirs_keys_at_real_size() -> None:
    got = keys("hypir")
    assert got == pefts_own(256, default=list(families.HYPIR_MODULES))
    modules = [name for name in got if ".lora_A." in name]
    assert (len(got), len(modules), sum(len(got[name]) == 4 for name in modules)) == (514, 257, 65)


@pytest.mark.slow
def test_pisas_keys_at_real_size() -> None:
    unet = empty_network("unet", SD21.unet, Path("unet"))
    lists = families.divided(unet, families.PISA_PATTERNS)
    adapters = {f"default_{name}_{kind}": lists[name] for kind in ("pix", "sem") for name in lists}
    assert keys("pisasr") == pefts_own(4, **adapters)
    assert sum(map(len, lists.values())) == 258


@pytest.mark.slow
def test_osediffs_keys_at_real_size() -> None:
    lists = families.divided(empty_network("unet", SD21.unet, Path("unet")), families.HYPIR_MODULES)
    assert keys("osediff") == pefts_own(4, **{f"default_{name}": lists[name] for name in lists})


@pytest.mark.parametrize("family", FAMILIES)
def test_they_load_and_stay_finite(base: Path, small: Architecture, tmp_path: Path, family: str) -> None:
    path = tmp_path / FAMILIES[family].published
    written = write_synthetic_lora(FAMILIES[family], path, 3, small)
    lora = read_lora(path)
    assert lora.synthetic and lora.family.name == written.family == family
    pairs = [pair for sites in lora.updates.values() for each in sites.values() for pair in each]
    parameters = sum(a.numel() + b.numel() for a, b in pairs)
    assert written.parameters == parameters + sum(t.numel() for part in lora.base.values() for t in part.values())
    model, plain = load_model(str(base), lora=path), load_model(str(base))
    assert not torch.equal(model.unet.conv_out.weight, plain.unet.conv_out.weight)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for network in reference_networks(model).values():
        with torch.no_grad():
            x = network(x)
        assert torch.isfinite(x).all() and 0.01 < float(x.std()) < 20


def test_the_seed_decides_every_byte(small: Architecture, tmp_path: Path) -> None:
    paths = [tmp_path / str(i) / "it.pth" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        path.parent.mkdir()
        write_synthetic_lora(FAMILIES["hypir"], path, seed, small)
    first, second, other = map(sha256_from_path, paths)
    assert first == second != other
    with pytest.raises(UsageError, match="already exists"):
        write_synthetic_lora(FAMILIES["hypir"], paths[0], 1, small)


@pytest.mark.parametrize("family", ["hypir", "pisasr", "osediff"])
def test_a_pickle_is_not_called_safetensors(small: Architecture, tmp_path: Path, family: str) -> None:
    """No one, IntSR included, could read it."""
    with pytest.raises(UsageError, match=r"x\.safetensors: suffix \.safetensors; expected .*intsr convert"):
        write_synthetic_lora(FAMILIES[family], tmp_path / "x.safetensors", 0, small)


def test_a_random_lora_marks_a_real_model(small: Architecture, base: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "intsr_model.json").read_text())
    path = tmp_path / "pisa_sr.pkl"
    write_synthetic_lora(FAMILIES["pisasr"], path, 0, small)
    content = torch.load(path, weights_only=True)
    torch.save(content, tmp_path / "unmarked.pkl")
    real = Path(shutil.copytree(base, tmp_path / "real"))
    (real / "intsr_model.json").write_text(json.dumps(settings | {"synthetic": False, "licence": "mine"}))
    assert load_model(str(real), lora=path).spec.synthetic
    spec = load_model(str(real), lora=tmp_path / "unmarked.pkl").spec
    assert not spec.synthetic and spec.licence == f"{FAMILIES['pisasr'].licence}; mine"


def test_the_command(
    intsr: Callable[..., tuple[int, str, str]], small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = base_shapes(small)
    monkeypatch.setattr("intsr.calib.models.synth.base_shapes", lambda _: shapes)
    code, out, err = intsr("synth", "--family", "omgsr", "-o", tmp_path / "omgsr", "--json")
    assert code == 0 and json.loads(out)["note"] == SYNTHETIC_NOTE and "OMGSR-S's format" in err, err
    assert read_lora(tmp_path / "omgsr").synthetic
    for arguments in ((), ("--family", "hypir", "--arch", "sd21")):
        code, _, err = intsr("synth", *arguments, "-o", tmp_path / "x")
        assert code == 2 and "neither or both of --arch and --family" in err


def test_the_names_of_options_are_the_families() -> None:
    assert (*FAMILIES, DEFAULTS.family) == FAMILY_NAMES
    assert all(family.defaults.family == name for name, family in FAMILIES.items())


def test_info_by_family(intsr: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = intsr("info", "--family", "hypir", "--json")
    report = json.loads(out)
    assert code == 0 and report["model"] == "HYPIR"
    # 1.04 GB in float32, which is what is published.
    assert (report["total"]["parameters"], report["lora_parameters"]) == (949_564_587, 259_474_432)
    # A whole model, and no LoRA.
    code, out, _ = intsr("info", "--family", "adcsr", "--json")
    report = json.loads(out)
    assert code == 0 and report["model"] == "AdcSR" and "lora_parameters" not in report
    assert report["total"]["parameters"] == 456_073_683
    code, _, err = intsr("info", "--family", "hypir", "--arch", "sd21")
    assert code == 2 and "neither or several of MODEL, --arch and --family" in err
