"""Targets are data, and what they name is there."""

from __future__ import annotations

from importlib import import_module

import pytest

from intsr.errors import UsageError
from intsr.optional import EXTRAS
from intsr.targets import TARGET_NAMES, TARGETS, Target, lowering_from_name, target_from_name
from intsr.targets.lowering import LOWERINGS, PLUGINS, PLUGINS_OF_LOWERING


def test_every_file_of_the_folder_is_a_target() -> None:
    assert TARGET_NAMES == ("cpu", "onnxruntime", "tensorrt", "tensorrt-rtx")
    with pytest.raises(UsageError, match="cpu, onnxruntime, tensorrt, tensorrt-rtx"):
        target_from_name("tpu")


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_NAMES)
def test_what_a_target_names_is_there(target: Target) -> None:
    assert callable(import_module(target.builder).build)
    backend = import_module(target.backend)
    assert callable(backend.open_backend) and callable(backend.load_library)
    if target.sharing:
        module, _, function = target.sharing.partition(":")
        assert callable(getattr(import_module(module), function)) and target.further_suffix
    named = {target.lowering, *target.other_lowerings, target.weight_only_lowering} - {None}
    assert named <= set(LOWERINGS) and set(target.plugins) <= set(PLUGINS)
    assert all(target.takes(str(name)) for name in named) and not target.takes("symmetric-f32")
    assert EXTRAS.get(target.module, "") == target.extra
    # Plans of GPUs are told by their first bytes.
    assert bool(target.plan_tag) is target.gpu


def test_lowerings_by_name() -> None:
    for target in TARGETS:
        assert lowering_from_name(target.name).name == target.lowering
    for plain, plugins in PLUGINS_OF_LOWERING.items():
        assert lowering_from_name(plain, PLUGINS) is lowering_from_name(plugins) is LOWERINGS[plugins]
    with pytest.raises(UsageError, match=r"'x'; expected one of asymmetric, .*, cpu, onnxruntime"):
        lowering_from_name("x")
    with pytest.raises(UsageError, match=r"together with --target tensorrt-rtx; expected target tensorrt$"):
        lowering_from_name("tensorrt-rtx", PLUGINS)
