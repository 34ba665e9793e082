"""Single-file checkpoints: names there and back, and everything that is not SD 2.1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ldm
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from intsr.calib.models.families.architecture import SD21
from intsr.calib.models.families.sd21_ldm import configs_from_ldm
from intsr.calib.models.open import load_model, open_model
from intsr.calib.models.prompt import context_from_ldm
from intsr.errors import ModelError

State = dict[str, torch.Tensor]
Networks = tuple[UNet2DConditionModel, AutoencoderKL]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return ldm.small_sd21()


@pytest.fixture(scope="module")
def state(networks: Networks) -> State:
    return {name: tensor.contiguous() for name, tensor in ldm.ldm_state(*networks).items()}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("context") / "context.safetensors"
    save_file({"context": torch.randn(1, 77, ldm.CONTEXT_CHANNELS)}, path)
    return path


@pytest.fixture
def checkpoint(state: State, tmp_path: Path) -> Path:
    save_file(state, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def assert_same(got: torch.nn.Module, expected: torch.nn.Module) -> None:
    tensors, others = got.state_dict(), expected.state_dict()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_there_and_back_is_bit_for_bit(networks: Networks, checkpoint: Path, context: Path) -> None:
    model = load_model(str(checkpoint), context)
    assert_same(model.unet, networks[0])
    assert_same(model.vae, networks[1])
    assert (model.spec.name, model.spec.timestep, model.spec.size_multiple_px) == ("base", 999, 64)
    assert model.spec.alpha_bar == pytest.approx(0.00466010, rel=1e-5)
    assert model.spec.latent_scaling_factor == 0.18215


def test_pickled_checkpoints_with_what_training_leaves_in_them(
    state: State, checkpoint: Path, context: Path, tmp_path: Path
) -> None:
    extra = {"betas": torch.zeros(9), "model_ema.decay": torch.zeros(1), "cond_stage_model.x.y": torch.zeros(1)}
    path = tmp_path / "full.ckpt"
    torch.save({"state_dict": state | extra, "global_step": 3, "callbacks": {}}, path)
    assert_same(*(open_model(str(file), context).load("unet").unet for file in (path, checkpoint)))


def test_a_half_precision_file_is_loaded_in_single(state: State, context: Path, tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    unet = open_model(str(tmp_path / "half.safetensors"), context).load("unet").unet
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def test_sd21s_configuration_is_read_from_its_shapes() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(SD21.unet))
        vae = AutoencoderKL.from_config(dict(SD21.vae))
    shapes = {name: tuple(tensor.shape) for name, tensor in ldm.ldm_state(unet, vae).items()}
    assert configs_from_ldm(shapes, Path("sd21.safetensors")) == (SD21.unet, SD21.vae)


def drop(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if name not in key}


def add(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("out_layers.3.bias"), ["missing", "down_blocks.0.resnets.0.conv2.bias", "..."]),
        (drop("first_stage_model.quant_conv.bias"), ["1 missing (quant_conv.bias)"]),
        (add("model.diffusion_model.input_blocks.1.0.surplus.weight", 3), ["unknown", "surplus"]),
        (add("model.diffusion_model.surplus", 3), ["model.diffusion_model.surplus"]),
        (add("control_model.x.weight", 3), ["control_model.x.weight"]),
        (add("model.diffusion_model.out.0.bias", 5), ["of another shape", "conv_norm_out.bias (5,), not (64,)"]),
        (add("model.diffusion_model.label_emb.0.0.weight", 3), ["an SDXL checkpoint", "expected SD 2.1"]),
        (add("model.diffusion_model.middle_block.1.proj_in.weight", 128, 128, 1, 1), ["an SD 1.x checkpoint"]),
        (drop("first_stage_model."), ["no SD 2.1 checkpoint"]),
        (drop("middle_block.1.transformer_blocks"), ["middle_block.1.transformer_blocks"]),
        (add("model.diffusion_model.input_blocks.2.0.out_layers.3.weight", 128, 64, 3, 3), ["levels of widths"]),
    ],
)
def test_what_is_not_sd21(
    state: State, context: Path, tmp_path: Path, change: Callable[[State], State], words: list[str]
) -> None:
    path = tmp_path / "changed.safetensors"
    save_file(change(state), path)
    with pytest.raises(ModelError) as error:
        load_model(str(path), context)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_widths_that_leave_the_heads_unknown(state: State, tmp_path: Path) -> None:
    shapes = {name: tuple(side // 2 if side >= 64 else side for side in t.shape) for name, t in state.items()}
    with pytest.raises(ModelError, match="multiples of 64"):
        configs_from_ldm(shapes, tmp_path)


def test_no_context_in_the_file_or_not_the_whole_of_it(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="give one with --context FILE"):
        load_model(str(checkpoint))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"base\.safetensors") as error:
        load_model(str(checkpoint))
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"a file \.onnx; expected \.safetensors"):
        load_model(str(checkpoint.rename(checkpoint.with_suffix(".onnx"))))


INSIDE = {"norm1": "ln_1", "self_attn": "attn", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}


def open_clip(width: int, blocks: int, vocabulary: int) -> tuple[State, list[torch.nn.Module]]:
    """A text encoder under OpenCLIP's names in ldm's files, and its blocks."""
    torch.manual_seed(5)
    make = torch.nn.TransformerEncoderLayer
    own = [make(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(blocks)]
    sizes = {"token_embedding.weight": (vocabulary, width), "positional_embedding": (77, width)}
    sizes |= {"ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, width)}
    tensors = {name: torch.randn(size) for name, size in (sizes | {"logit_scale": ()}).items()}
    for i, block in enumerate(own):
        for name, parameter in block.eval().requires_grad_(False).named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
            inner, _, rest = name.partition(".")
            tensors[f"transformer.resblocks.{i}.{INSIDE[inner]}.{rest}"] = parameter
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in tensors.items()}, own


def test_the_empty_prompt_through_the_files_own_text_encoder() -> None:
    tensors, blocks = open_clip(128, 3, 50)
    got = context_from_ldm(tensors, Path("x.ckpt"), layers=2)
    prefix, mask = "cond_stage_model.model.", torch.nn.Transformer.generate_square_subsequent_mask(77)
    embedded = tensors[f"{prefix}token_embedding.weight"][torch.tensor([[48, 49, *[0] * 75]])]
    x = embedded + tensors[f"{prefix}positional_embedding"]
    for block in blocks[:2]:
        x = block(x, mask)
    ends = (tensors[f"{prefix}ln_final.{kind}"] for kind in ("weight", "bias"))
    expected = torch.nn.functional.layer_norm(x, (128,), *ends)
    assert got.shape == (1, 77, 128)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_text_encoder_with_a_part_missing() -> None:
    tensors, _ = open_clip(64, 2, 50)
    del tensors["cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.bias"]
    with pytest.raises(ModelError, match=r"fc1\.bias"):
        context_from_ldm(tensors, Path("x.ckpt"), layers=1)
