"""Optional libraries: imported, or named with the extra that brings them."""

import sys

import pytest

from intsr.errors import MissingLibraryError
from intsr.optional import EXTRAS, require


def test_missing_library_is_named_with_its_extra(monkeypatch):
    for library, extra in {**EXTRAS, "skimage.metrics": "compile"}.items():
        package = library.partition(".")[0]
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingLibraryError, match=rf"this test: {package} is not installed; .*intsr\[{extra}\]"):
            require(library, "this test")


def test_what_a_present_library_lacks_itself_is_not_hidden(monkeypatch, tmp_path):
    assert require("json.decoder", "a test").__name__ == "json.decoder"
    (tmp_path / "half_installed.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        require("half_installed", "this test")


def test_every_extra_exists():
    from importlib.metadata import metadata

    provided = set(metadata("intsr").get_all("Provides-Extra") or [])
    assert set(EXTRAS.values()) <= provided
