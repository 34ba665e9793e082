"""Errors are one line whatever they are made of, and each has its exit code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intsr import errors
from intsr.errors import IntsrError, MissingLibraryError

TEXT = st.text(max_size=20)


@given(got=TEXT, expected=TEXT, fix=TEXT)
def test_always_one_line(got, expected, fix):
    assert len(str(IntsrError("where", got, expected, fix)).splitlines()) == 1


def test_parts_in_order_and_only_those_given():
    assert (
        str(IntsrError("a.png", "8 pixels", "9 pixels", "crop it")) == "a.png: 8 pixels; expected 9 pixels; crop it"
    )
    assert str(IntsrError("a.png", got="8 pixels")) == "a.png: 8 pixels"
    assert str(IntsrError("a.png", fix="crop it")) == "a.png: crop it"
    assert str(IntsrError("a.png", "two\n  lines")) == "a.png: two lines"
    assert IntsrError("a.png", "b", "c", "d").where == "a.png"


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("UsageError", 2),
        ("ImageError", 2),
        ("ModelError", 2),
        ("CalibrationError", 2),
        ("ExportError", 2),
        ("BundleError", 2),
        ("BuildError", 1),
        ("VerificationError", 1),
        ("EngineMismatchError", 3),
        ("OutOfMemoryError", 4),
    ],
)
def test_exit_codes(name, exit_code):
    assert getattr(errors, name)("where").exit_code == exit_code


def test_missing_library_names_the_extra():
    error = MissingLibraryError("torch", "compile", "intsr info")
    assert str(error) == 'intsr info: torch is not installed; install it with: pip install "intsr[compile]"'
