"""Errors are one line whatever they are made of, and each has its exit code."""

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


def test_exit_codes():
    codes = {"BuildError": 1, "VerificationError": 1, "EngineMismatchError": 3, "OutOfMemoryError": 4}
    codes |= dict.fromkeys(("UsageError", "ImageError", "ModelError", "CalibrationError", "ExportError"), 2)
    codes |= {"BundleError": 2}
    assert {name: getattr(errors, name)("where").exit_code for name in codes} == codes


def test_missing_library_names_the_extra():
    error = MissingLibraryError("torch", "compile", "intsr info")
    assert str(error) == 'intsr info: torch is not installed; install it with: pip install "intsr[compile]"'
