"""ComfyUI's nodes: registered by its conventions, the command's pixels, and a run that stops where the user wants."""

from __future__ import annotations

import gc
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builds import built_in_this_process
from fake_comfyui import EarlierInterrupt, FakeComfyUI, LaterInterrupt, Schema
from identity_engines import FACTOR, TILE_PX, write_identity_engine
from PIL import Image

from intsr.errors import BundleError, ImageError, UsageError
from intsr.runtime.tiles.grid import plan_tiles

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
Run = Callable[..., tuple[int, str, str]]
SMALLER_PX = 8


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine whose output differs from the enlarged input, at two tile sizes."""
    folder = tmp_path_factory.mktemp("engines")
    changes = {"color_fix": "wavelet", "smaller_px": SMALLER_PX}
    write_identity_engine(folder, "cpu", 0.8, 0.1, **changes).rename(folder / "small.engine")
    return folder


@pytest.fixture
def comfyui(tmp_path: Path, engines: Path) -> Iterator[FakeComfyUI]:
    """With the pack in its `custom_nodes`, copied as a user copies it, and an engine in `models/intsr`."""
    fake = FakeComfyUI(tmp_path / "models")
    (fake.models / "intsr").mkdir(parents=True)
    shutil.copy(engines / "small.engine", fake.models / "intsr")
    shutil.copytree(PACK, pack := tmp_path / "custom_nodes" / "intsr.v1")
    with fake.loaded(pack):
        yield fake


@pytest.fixture
def engine(comfyui: FakeComfyUI) -> Any:
    return comfyui.nodes["IntSRLoadEngine"].execute(engine_name="small.engine").args[0]


@pytest.fixture
def upscale(comfyui: FakeComfyUI, engine: Any) -> Callable[..., torch.Tensor]:
    """upscale(image, color_fix=, tile=) -> the node's output."""

    def run(image: torch.Tensor, color_fix: str = "auto", tile: int = 0) -> torch.Tensor:
        node = comfyui.nodes["IntSRUpscale"]
        return node.execute(engine=engine, image=image, color_fix=color_fix, tile=tile).args[0]

    return run


def loaded(path: Path) -> torch.Tensor:
    """(1, H, W, C), as ComfyUI's LoadImage makes it of 8 bits; its own gives RGB alone."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return torch.from_numpy(np.atleast_3d(pixels).astype(np.float32) / 255.0)[None]


def saved(image: torch.Tensor) -> np.ndarray:
    """(H, W, C) uint8, as ComfyUI's SaveImage makes it: cut off, not rounded."""
    return np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)


def pictures(folder: Path, size: tuple[int, int], count: int = 1, mode: str = "RGB") -> list[Path]:
    """Write parts of a photograph with all that changes from pixel to pixel. size: width and height."""
    from skimage.data import astronaut

    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        image = Image.fromarray(astronaut()).crop((150 + 9 * index, 20, 150 + 9 * index + size[0], 20 + size[1]))
        image.putalpha(image.getchannel("G")) if mode == "RGBA" else None
        image.convert(mode).save(path)
    return paths


def by_command(intsr: Run, engine: Path, path: Path, *options: object) -> tuple[np.ndarray, int]:
    """Return the pixels that `intsr upscale` writes, and the tile that it took."""
    output = path.with_name(f"{path.stem}-large.png")
    code, out, err = intsr("upscale", engine, path, "-o", output, "--json", "--overwrite", *options)
    assert code == 0, err
    with Image.open(output) as image:
        return np.atleast_3d(np.asarray(image)), json.loads(out)["tile_px"]


def info_of(schema: Schema) -> dict[str, Any]:
    return {
        "category": schema.category,
        "inputs": {item.id: (item.io_type, item.info) for item in schema.inputs or []},
        "outputs": [(item.io_type, item.display_name) for item in schema.outputs or []],
    }


def test_nodes_are_registered_by_the_current_schema(comfyui: FakeComfyUI) -> None:
    assert comfyui.names == {"IntSRLoadEngine": "Load IntSR engine", "IntSRUpscale": "Upscale (IntSR)"}
    load, upscale = (info_of(node.GET_SCHEMA()) for node in comfyui.nodes.values())
    assert load == {
        "category": "image/upscaling",
        "inputs": {"engine_name": ("COMBO", {"options": ["small.engine"]})},
        "outputs": [("INTSR_ENGINE", "engine")],
    }
    for _, about in upscale["inputs"].values():
        about.pop("tooltip", None)
    assert upscale == {
        "category": "image/upscaling",
        "inputs": {
            "engine": ("INTSR_ENGINE", {}),
            "image": ("IMAGE", {}),
            "color_fix": ("COMBO", {"options": ["auto", "wavelet", "adain", "none"], "default": "auto"}),
            "tile": ("INT", {"default": 0, "min": 0, "max": 4096}),
        },
        "outputs": [("IMAGE", None)],
    }


def test_engines_are_what_the_models_folders_hold(comfyui: FakeComfyUI, tmp_path: Path) -> None:
    folder = comfyui.models / "intsr"
    (folder / "notes.txt").write_text("not offered")
    (folder / "more").mkdir()
    shutil.copy(folder / "small.engine", folder / "more" / "b.engine")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "small.engine", tmp_path / "elsewhere" / "c.ENGINE")
    comfyui.add_model_folder_path("intsr", str(tmp_path / "elsewhere"))
    (choice,) = comfyui.nodes["IntSRLoadEngine"].GET_SCHEMA().inputs or []
    assert choice.info["options"] == ["c.ENGINE", str(Path("more", "b.engine")), "small.engine"]


def test_a_folder_that_was_named_before_stays(tmp_path: Path) -> None:
    fake = FakeComfyUI(tmp_path / "models")
    fake.add_model_folder_path("intsr", "/elsewhere")
    with fake.loaded(PACK):
        assert fake.folders["intsr"] == (["/elsewhere", str(tmp_path / "models" / "intsr")], {".engine"})
    assert (tmp_path / "models" / "intsr").is_dir()


def test_the_package_file_is_what_the_registry_reads() -> None:
    facts = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    assert facts["project"]["name"] == "intsr" and facts["project"]["dependencies"] == ["intsr"]
    assert facts["tool"]["comfy"]["requires-comfyui"] == ">=0.3.64"
    assert (PACK / "requirements.txt").read_text(encoding="utf-8").split() == ["intsr"]


def test_the_workflow_is_one_of_these_nodes(comfyui: FakeComfyUI) -> None:
    path = PACK / "example_workflows" / "intsr_upscale.json"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    # ComfyUI shows it beside the workflow.
    assert path.with_suffix(".jpg").is_file()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert {node["type"] for node in nodes.values()} == {*comfyui.nodes, "LoadImage", "SaveImage"}
    assert len(workflow["links"]) == 3
    for link, start, output, end, place, kind in workflow["links"]:
        assert link in nodes[start]["outputs"][output]["links"] and nodes[end]["inputs"][place]["link"] == link
        assert nodes[start]["outputs"][output]["type"] == nodes[end]["inputs"][place]["type"] == kind
    for node in nodes.values():
        if node["type"] not in comfyui.nodes:
            continue
        schema = comfyui.nodes[node["type"]].GET_SCHEMA()
        inputs = [(item.id, item.io_type) for item in schema.inputs or []]
        assert [(item["name"], item["type"]) for item in node["inputs"]] == inputs
        defaults = [item.info["default"] for item in schema.inputs or [] if "default" in item.info]
        assert node["widgets_values"] == (defaults or ["demo.engine"])


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (5, 3), (1, 1)])
def test_each_image_of_a_batch_has_the_commands_pixels(
    upscale: Callable[..., torch.Tensor], intsr: Run, engine: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    paths = pictures(tmp_path, size, count=3)
    made = upscale(torch.cat([loaded(path) for path in paths]))
    assert made.shape == (3, size[1] * FACTOR, size[0] * FACTOR, 3) and made.dtype == torch.float32
    assert made.min() >= 0 and made.max() <= 1
    for path, one in zip(paths, made, strict=True):
        expected, tile_px = by_command(intsr, engine.engine.path, path)
        assert np.array_equal(saved(one), expected)
        assert engine.engine.tile_px == tile_px
    # Not of the same picture three times, nor of the input itself.
    if size != (1, 1):
        assert not torch.equal(made[0], made[1])


def test_the_tile_is_the_commands(upscale: Callable[..., torch.Tensor], engine: Any, tmp_path: Path) -> None:
    used = []
    for size, tile in (((8, 8), 0), ((40, 40), 0), ((8, 8), TILE_PX), ((40, 40), SMALLER_PX), ((8, 8), 0)):
        (path,) = pictures(tmp_path, size)
        upscale(loaded(path), tile=tile)
        used.append(engine.engine.tile_px)
    assert used == [SMALLER_PX, TILE_PX, TILE_PX, SMALLER_PX, SMALLER_PX]
    with pytest.raises(UsageError, match="--tile: 9 pixels; expected 16 or 8"):
        upscale(loaded(path), tile=9)
    upscale(loaded(path))


@pytest.mark.slow
def test_a_models_engine_whose_tiles_matter(
    comfyui: FakeComfyUI, intsr: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    path = comfyui.models / "intsr" / "tiny.engine"
    with built_in_this_process():
        code, _, err = intsr("compile", tiny_folder, "--bits", "fp", "--tile", "32,16", "-o", path)
    assert code == 0, err
    engine = comfyui.nodes["IntSRLoadEngine"].execute(engine_name="tiny.engine").args[0]
    for size in ((16, 13), (45, 37)):
        (picture,) = pictures(tmp_path, size)
        made = {}
        for tile in (0, 32, 16):
            arguments = {"engine": engine, "image": loaded(picture), "color_fix": "auto", "tile": tile}
            made[tile] = saved(comfyui.nodes["IntSRUpscale"].execute(**arguments).args[0][0])
            options = ("--tile", tile) if tile else ()
            assert np.array_equal(made[tile], by_command(intsr, path, picture, *options)[0])
        assert not np.array_equal(made[32], made[16])


@pytest.mark.parametrize("color_fix", ["wavelet", "adain", "none"])
def test_options_are_the_commands(
    upscale: Callable[..., torch.Tensor], intsr: Run, engine: Any, tmp_path: Path, color_fix: str
) -> None:
    (path,) = pictures(tmp_path, (37, 21))
    made = saved(upscale(loaded(path), color_fix, SMALLER_PX)[0])
    options = ("--color-fix", color_fix, "--tile", SMALLER_PX)
    assert np.array_equal(made, by_command(intsr, engine.engine.path, path, *options)[0])
    if color_fix != "wavelet":
        assert not np.array_equal(made, by_command(intsr, engine.engine.path, path)[0])


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparency_are_kept(
    upscale: Callable[..., torch.Tensor], intsr: Run, engine: Any, tmp_path: Path, mode: str
) -> None:
    (path,) = pictures(tmp_path, (23, 19), mode=mode)
    made = saved(upscale(loaded(path))[0])
    expected, _ = by_command(intsr, engine.engine.path, path)
    assert made.shape[2] == len(mode) and np.array_equal(made, expected)


def test_an_opaque_image_stays_one_of_four_channels(upscale: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, (23, 19))
    colours = loaded(path)
    made = upscale(torch.cat([colours, torch.ones_like(colours[..., :1])], dim=3))
    assert (made[..., 3] == 1).all() and torch.equal(made[..., :3], upscale(colours))


def test_values_between_levels_of_8_bits_are_not_rounded_to_them(
    upscale: Callable[..., torch.Tensor], engine: Any
) -> None:
    levels = torch.linspace(1000, 60000, 24 * 20 * 3).round().reshape(24, 20, 3)
    made = upscale((levels / 65535)[None])[0]
    expected = engine.engine.upscale(levels.numpy().astype(np.uint16)).astype(np.float32) / 65535
    assert np.array_equal(made.numpy(), expected)
    assert (made * 255 - (made * 255).round()).abs().max() > 0.4


def test_all_levels_of_8_bits_come_back_from_saving_and_loading() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(saved(torch.from_numpy(levels.astype(np.float32) / np.float32(255))), levels)


def test_half_precision_and_values_outside_are_taken(upscale: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, (12, 9))
    image = loaded(path)
    wide = torch.where(image > 0.9, image + 3, torch.where(image < 0.1, image - 3, image))
    assert torch.equal(upscale(wide), upscale(wide.clamp(0, 1)))
    assert (upscale(image.half()) - upscale(image)).abs().max() < 0.01
    with torch.inference_mode():
        assert torch.equal(upscale(image), upscale(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(2, 8, 8, 2),
            r"image: shape \(2, 8, 8, 2\); expected \(B, H, W, C\) with 1, 3 or 4 channels, not empty",
        ),
        (torch.zeros(8, 8, 3), r"image: shape \(8, 8, 3\); expected"),
        (torch.zeros(0, 8, 8, 3), r"image: shape \(0, 8, 8, 3\); expected"),
        (torch.full((1, 8, 8, 3), torch.nan), r"image: NaN values; expected values in \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(upscale: Callable[..., torch.Tensor], image: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=f"^{message}.*$"):
        upscale(image)


def test_the_bar_moves_with_every_tile(
    comfyui: FakeComfyUI, upscale: Callable[..., torch.Tensor], engine: Any, tmp_path: Path
) -> None:
    paths = pictures(tmp_path, (37, 53), count=3)
    upscale(torch.cat([loaded(path) for path in paths]))
    tiles = len(plan_tiles(53, 37, engine.engine.tile_px, engine.engine.overlap_px).tiles)
    assert tiles > 4
    assert comfyui.bars == [[(done, 3 * tiles) for done in range(1, 3 * tiles + 1)]]


@pytest.mark.parametrize("interrupt", [EarlierInterrupt, LaterInterrupt])
def test_a_run_that_is_stopped_leaves_nothing(
    interrupt: type[BaseException],
    comfyui: FakeComfyUI,
    upscale: Callable[..., torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spilled = tmp_path / "temporary"
    spilled.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spilled))
    monkeypatch.setattr("intsr.runtime.color_fix.adain.HELD_BYTES", 0)
    image = torch.cat([loaded(path) for path in pictures(tmp_path, (37, 53), count=2)])
    whole = upscale(image, "adain")
    tiles = len(comfyui.bars[-1]) // 2
    # In the middle of the second image.
    comfyui.patience, comfyui.interrupt = tiles + tiles // 2, interrupt
    with pytest.raises(interrupt):
        upscale(image, "adain")
    done = comfyui.bars[-1]
    assert done[-1] == (tiles + tiles // 2, 2 * tiles) and len(done) == tiles + tiles // 2
    assert list(spilled.iterdir()) == []
    # The engine is free, for another thread, too, and nothing of the run is in the next one's pixels.
    with ThreadPoolExecutor() as pool:
        assert torch.equal(pool.submit(upscale, image, "adain").result(timeout=60), whole)


def test_an_engine_that_is_missing_or_none_is_one_line(comfyui: FakeComfyUI) -> None:
    load = comfyui.nodes["IntSRLoadEngine"].execute
    with pytest.raises(
        FileNotFoundError, match=r"^Model in folder 'intsr' with filename 'gone\.engine' not found\.$"
    ):
        load(engine_name="gone.engine")
    for content in (b"", b"not an engine", b"PK\x03\x04"):
        (comfyui.models / "intsr" / "broken.engine").write_bytes(content)
        with pytest.raises(BundleError) as raised:
            load(engine_name="broken.engine")
        assert "broken.engine: " in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_was_replaced_is_opened_again(comfyui: FakeComfyUI, tmp_path: Path) -> None:
    fingerprint = comfyui.nodes["IntSRLoadEngine"].fingerprint_inputs  # type: ignore[attr-defined]
    before = fingerprint(engine_name="small.engine")
    assert fingerprint(engine_name="small.engine") == before
    path = comfyui.models / "intsr" / "small.engine"
    path.touch()
    assert fingerprint(engine_name="small.engine") != before
    with pytest.raises(FileNotFoundError):
        fingerprint(engine_name="gone.engine")


def test_an_engine_that_comfyui_forgets_is_closed(comfyui: FakeComfyUI) -> None:
    loaded_engine = comfyui.nodes["IntSRLoadEngine"].execute(engine_name="small.engine").args[0]
    engine = loaded_engine.engine
    engine.check_usable()
    del loaded_engine
    gc.collect()
    with pytest.raises(UsageError, match="closed"):
        engine.check_usable()
