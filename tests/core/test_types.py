"""Types check themselves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr.errors import UsageError
from intsr.types import MAX_BITS, MIN_BITS, Bits, ModelSpec

WIDTHS = st.integers(MIN_BITS, MAX_BITS)
SPEC = ModelSpec("m", 999, 0.00466, 0.18215, 4, "lanczos", 64)


@given(weights=WIDTHS, activations=WIDTHS)
def test_bits_are_written_as_they_are_read(weights, activations):
    bits = Bits.parse(f"w{weights}a{activations}")
    assert (bits.weights, bits.activations, bits.quantized) == (weights, activations, True)
    assert Bits.parse(str(bits)) == bits


def test_full_precision():
    bits = Bits.parse("fp")
    assert (bits.weights, bits.activations, bits.quantized, str(bits)) == (None, None, False, "fp")


@pytest.mark.parametrize("text", ["w9a8", "w8a1", "", "W8A8", "w8a8\n", "w٨a8"])
def test_other_bits_are_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"--bits: .*; expected wXaY .*; for example --bits w8a8") as caught:
        Bits.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("weights", "activations"), [(9, 8), (None, 8)])
def test_bits_check_themselves(weights, activations):
    with pytest.raises(ValueError, match="bits"):
        Bits(weights, activations)


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha_bar", 0.0), ("alpha_bar", float("nan")), ("resize_filter", "nearest"), ("upscale_factor", 0)],
)
def test_model_spec_checks_itself(name, value):
    with pytest.raises(ValueError, match=name):
        replace(SPEC, **{name: value})
