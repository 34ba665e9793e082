"""What a calibration is bound to: weights and settings, not names, places or the processor at hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import edit_json

from intsr.calib.calibration.types import Calibration
from intsr.calib.models.families.published import FAMILIES
from intsr.calib.models.open import open_model
from intsr.errors import CalibrationError
from intsr.export.pipeline import export_model
from intsr.targets import lowering_from_name

TEXT_FILES = ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json")


@pytest.fixture
def with_encoder(folder: Path) -> Path:
    """A folder whose context its text encoder makes."""
    (folder / "intsr_model.json").unlink()
    for name in TEXT_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def encode_as(monkeypatch: pytest.MonkeyPatch, kind: str, processor: int) -> None:
    """The encoder's last bits, as another processor computes them."""
    context = torch.linspace(-1, 1, 7 * 24).reshape(1, 7, 24) * (1 + processor * 2**-22)
    monkeypatch.setattr(f"intsr.calib.models.open.context_from_{kind}", lambda *_: context)


def test_another_processor_is_no_other_model(with_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for processor in (0, 1):
        encode_as(monkeypatch, "folder", processor)
        sources.append(open_model(str(with_encoder)))
    assert not torch.equal(sources[0].context, sources[1].context)
    assert sources[0].digest == sources[1].digest


@pytest.mark.parametrize("name", TEXT_FILES)
def test_another_text_encoder_is_another_model(
    with_encoder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_as(monkeypatch, "folder", 0)
    before = open_model(str(with_encoder)).digest
    (with_encoder / name).write_text("other content")
    assert open_model(str(with_encoder)).digest != before
    # Where a file gives the context, the encoder is not asked.
    given = open_model(str(with_encoder), with_encoder / "context.safetensors").digest
    (with_encoder / name).unlink()
    assert before != given == open_model(str(with_encoder), with_encoder / "context.safetensors").digest


def test_a_single_file_brings_its_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("intsr.calib.models.open.read_checkpoint", lambda path: type("C", (), {"tensors": {}}))
    for name in ("check_nothing_else", "check_channels"):
        monkeypatch.setattr(f"intsr.calib.models.open.{name}", lambda *_: None)
    unet = {"block_out_channels": (32, 48), "cross_attention_dim": 24}
    vae = {"block_out_channels": (16, 32), "scaling_factor": 0.18215}
    monkeypatch.setattr("intsr.calib.models.open.configs_from_ldm", lambda *_: (unet, vae))
    digests = set()
    for processor in (0, 1):
        encode_as(monkeypatch, "ldm", processor)
        digests.add(open_model(str(tmp_path / "base.safetensors")).digest)
    assert len(digests) == 1
    (tmp_path / "base.safetensors").write_bytes(b"other weights")
    assert open_model(str(tmp_path / "base.safetensors")).digest not in digests


def test_a_name_licence_or_place_is_not_part_of_it(folder: Path, tmp_path: Path) -> None:
    before = open_model(str(folder)).digest
    edit_json(folder / "intsr_model.json", name="renamed", licence="another")
    moved = open_model(str(folder.rename(tmp_path / "elsewhere")))
    assert moved.spec.name == "renamed" and moved.digest == before


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("intsr_model.json", {"timestep": 998}),
        ("intsr_model.json", {"upscale_factor": 2}),
        ("intsr_model.json", {"resize_filter": "bicubic"}),
        ("scheduler/scheduler_config.json", {"beta_end": 0.0121}),
        ("vae/config.json", {"scaling_factor": 0.2}),
        ("unet/config.json", {"sample_size": 32}),
    ],
)
def test_what_is_computed_with_is_part_of_it(folder: Path, file: str, changes: dict[str, object]) -> None:
    before = open_model(str(folder)).digest
    edit_json(folder / file, **changes)
    assert open_model(str(folder)).digest != before


def test_another_models_calibration_is_refused(
    tiny_folder: Path, tiny_calibration: Calibration, tmp_path: Path
) -> None:
    source = open_model(str(tiny_folder))
    for model, digest in ((source, "ab" * 32), (source.load(), "")):
        with pytest.raises(CalibrationError, match="calibrate this model"):
            wrong = replace(tiny_calibration, model_digest=digest)
            export_model(model, wrong, lowering_from_name("cpu", ()), 16, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_lora_is_part_of_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").write_bytes(b"adapter")
    facts = {"notes": (), "family": FAMILIES["osediff"], "variant": "", "synthetic": False}
    monkeypatch.setattr("intsr.calib.models.open.read_lora", lambda path, _: SimpleNamespace(path=path, **facts))
    plain, merged = open_model(str(tiny_folder)), open_model(str(tiny_folder), lora=tmp_path / "a.pkl")
    text = f"{plain.digest} lora:{hashlib.sha256(b'adapter').hexdigest()}"
    assert merged.digest == hashlib.sha256(text.encode()).hexdigest() != plain.digest
