"""Counts of video models against the published shape of Wan 2.1, and against torch's own operation counter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from video_models import TRANSFORMER, VAE

from intsr.calib.models.families.wan import WAN21_1_3B, VideoArchitecture
from intsr.calib.models.video import load_video_model
from intsr.calib.models.video_cost import ChunkSize, costs_from_video_architecture, tokens, video_architecture
from intsr.errors import UsageError

Command = Callable[..., tuple[int, str, str]]
SIZE = ChunkSize(5, 32, 48)


def test_wan_at_720p_is_as_known() -> None:
    """25 frames of 1280x720: 25,200 tokens; 30 blocks of width 1536 with 8 linear layers left of 10."""
    size = ChunkSize(25, 1280, 720)
    transformer, vae = costs_from_video_architecture(WAN21_1_3B, size)
    constant, one_step = transformer.components
    count = tokens(WAN21_1_3B, size)
    assert count == 25_200
    width, ffn, blocks, text = 1536, 8960, 30, 512
    linear = blocks * (6 * width * width + 2 * width * ffn)
    assert linear == 1_250_426_880
    patches = 2 * (16 * 4 * width)
    assert one_step.macs == count * (linear + patches)
    assert round(one_step.macs / 1e12, 1) == 31.5
    of_itself, of_text = 2 * blocks * count * count * width, 2 * blocks * count * text * width
    assert round(of_itself / 1e12, 1) == 58.5
    assert transformer.attention_macs == one_step.attention_macs == of_itself + of_text
    # 142 million of keys and values of the text, and what makes the time and the text.
    assert constant.parameters == 1_418_996_800 - 1_251_446_848
    assert (transformer.parameters, vae.parameters) == (1_418_996_800, 126_892_531)
    # The VAE is most of the work that is not attention.
    assert vae.macs > 4 * transformer.macs


def test_counts_agree_with_torchs_counter_on_real_tensors(video_folder: Path) -> None:
    model = load_video_model(str(video_folder))
    architecture = VideoArchitecture("tiny", model.transformer.config, model.vae.config, model.context.shape[1])
    transformer, vae = costs_from_video_architecture(architecture, SIZE)
    x = torch.zeros(1, 3, SIZE.frames, SIZE.height_px, SIZE.width_px)
    latent = torch.zeros(1, 16, *SIZE.latents(architecture))
    aten = torch.ops.aten

    def counted(forward: Callable[[], Any]) -> tuple[int, int]:
        """Operations of layers, and of attention, which is products of matrices alone here."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        counts = counter.get_flop_counts()["Global"]
        layers = sum(counts.pop(op, 0) for op in (aten.convolution, aten.addmm, aten.mm))
        return layers, sum(counts.values())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        of_transformer = counted(lambda: model.transformer(latent, torch.tensor([399]), model.context))
        of_encoder, of_decoder = counted(lambda: model.vae.encode(x)), counted(lambda: model.vae.decode(latent))
    assert of_transformer == (2 * transformer.macs, 2 * transformer.attention_macs)
    encoder, decoder = vae.components
    assert of_encoder == (2 * encoder.macs, 2 * encoder.attention_macs)
    assert of_decoder == (2 * decoder.macs, 2 * decoder.attention_macs)


def test_a_folder_gives_the_same_as_its_architecture(video_folder: Path) -> None:
    architecture = video_architecture(str(video_folder), None)
    assert architecture is not None and (architecture.name, architecture.context_tokens) == ("tiny-wan", 7)
    classes = ({"_class_name": name} for name in ("WanTransformer3DModel", "AutoencoderKLWan"))
    networks = [{**name, **config} for name, config in zip(classes, (TRANSFORMER, VAE), strict=True)]
    expected = VideoArchitecture("x", *networks, context_tokens=7)
    assert costs_from_video_architecture(architecture, SIZE) == costs_from_video_architecture(expected, SIZE)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (ChunkSize(4097, 64, 64), "at most 1024 along each axis"),
        (ChunkSize(24, 64, 64), "24 frames; expected a first frame and whole fours: 1, 5, 9, ...; use 21 or 25"),
        (ChunkSize(0, 64, 64), "use 1 or 5"),
        (ChunkSize(5, 72, 64), "72 pixels wide; expected a positive multiple of 16"),
        (ChunkSize(5, 64, 8), "8 pixels high"),
    ],
)
def test_chunks_that_cannot_be(size: ChunkSize, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        costs_from_video_architecture(WAN21_1_3B, size)


def test_the_command(video_folder: Path, intsr: Command) -> None:
    code, out, err = intsr("info", video_folder, "--size", "48x32", "--frames", 9, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["model"], answer["frames"], answer["width_px"], answer["height_px"]) == ("tiny-wan", 9, 48, 32)
    assert answer["tokens"] == 3 * 2 * 3
    transformer, vae = answer["networks"]
    assert [part["name"] for part in transformer["components"] + vae["components"]] == [
        *("constant", "one step", "encoder", "decoder")
    ]
    assert answer["total"]["attention_gops"] == pytest.approx(transformer["attention_gops"] + vae["attention_gops"])
    code, out, err = intsr("info", video_folder, "--size", "48x32")
    assert code == 0 and "25 frames of 48 x 32 output, 42 tokens" in out and "attention's" in out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--frames", 5), "--frames: 5 of a picture model"),
        (("demo", "--size", "64x32"), "one side, of a square picture"),
        (("--arch", "wan2.1-1.3b", "--bits", "w8a8"), "--bits: together with a video model"),
        (("--arch", "wan2.1-1.3b", "--parts", "vae"), "--parts: together with a video model"),
        (("--arch", "wan2.1-1.3b", "--family", "hypir"), "--family: together with a video model"),
        (("demo-video", "--digests"), "--digests: together with a video model"),
        (("--arch", "wan2.1-1.3b", "--size", "big"), "a side in pixels, or width x height"),
        (("demo-video", "--family", "hypir"), "--family: together with a video model"),
        (("demo", "--parts", "unet"), "--parts: without --bits"),
        (("demo", "--arch", "wan2.1-1.3b"), "neither or several of MODEL, --arch and --family"),
    ],
)
def test_options_that_say_nothing_are_refused(intsr: Command, arguments: tuple[object, ...], words: str) -> None:
    code, out, err = intsr("info", *arguments)
    assert (code, out) == (2, "") and words in err, err
