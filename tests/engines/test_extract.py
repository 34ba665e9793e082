"""`intsr extract`: what was packed comes out, into a folder that may be written, or nothing does."""

import json
import zipfile
from dataclasses import asdict

import pytest
from bundles import MEMBERS, write_small_bundle
from click.testing import CliRunner

from intsr.bundle import read_manifest
from intsr.engines.commands.extract import extract
from intsr.errors import BundleError, UsageError


@pytest.fixture
def engine(tmp_path):
    return write_small_bundle(tmp_path / "tiny.engine")


def _run(*arguments):
    return CliRunner().invoke(extract, [str(argument) for argument in arguments], catch_exceptions=False)


def test_every_member_and_the_manifest(engine, tmp_path):
    output = tmp_path / "new" / "plans"
    result = _run(engine, "-o", output, "--json")
    sizes = {path.name: path.stat().st_size for path in output.iterdir()}
    contents = {path.name: path.read_bytes() for path in output.iterdir()}
    manifest = json.loads(contents.pop("manifest.json"))
    assert contents == MEMBERS
    assert manifest == json.loads(json.dumps(asdict(read_manifest(engine))))
    assert result.stderr.splitlines()[1] == f"{output / 'encoder.plan'}: {len(MEMBERS['encoder.plan'])} bytes"
    files = [{"name": name, "size_bytes": sizes[name]} for name in ("manifest.json", *MEMBERS)]
    assert json.loads(result.stdout) == {"folder": str(output), "files": files}


def test_an_earlier_extraction_is_replaced_and_other_folders_are_not(engine, tmp_path):
    output = tmp_path / "plans"
    _run(engine, "-o", output)
    (output / "old.plan").touch()
    _run(engine, "-o", output)
    assert {path.name for path in output.iterdir()} == {"manifest.json", *MEMBERS}
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").touch()
    with pytest.raises(UsageError, match="already holds something else"):
        _run(engine, "-o", tmp_path / "photographs")
    assert [path.name for path in (tmp_path / "photographs").iterdir()] == ["a.png"]


@pytest.mark.parametrize("content", ['{"name": "extension"}', "not JSON"])
def test_a_folder_with_another_kind_of_manifest_is_not_replaced(engine, tmp_path, content):
    folder = tmp_path / "extension"
    folder.mkdir()
    for name in ("manifest.json", "background.js"):
        (folder / name).write_text(content)
    with pytest.raises(UsageError, match="something else's manifest"):
        _run(engine, "-o", folder)
    assert [path.read_text() for path in folder.iterdir()] == [content] * 2


@pytest.mark.parametrize("name", ["../outside.plan", "..", "c:d", "a\\b"])
def test_names_that_lead_outside_write_nothing(engine, tmp_path, name):
    with zipfile.ZipFile(engine) as archive:
        contents = {key: archive.read(key) for key in archive.namelist()}
    values = json.loads(contents.pop("manifest.json"))
    values["networks"][0]["member"] = name
    values["sha256"][name] = values["sha256"].pop("encoder.plan")
    contents[name] = contents.pop("encoder.plan")
    with zipfile.ZipFile(engine, "w") as archive:
        archive.writestr("manifest.json", json.dumps(values))
        for key, content in contents.items():
            archive.writestr(key, content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="expected plain file names"):
        _run(engine, "-o", tmp_path / "below" / "plans")
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "below"]


def test_an_altered_engine_is_refused_in_one_line_and_nothing_is_written(engine, tmp_path, intsr):
    whole = bytearray(engine.read_bytes())
    whole[whole.index(MEMBERS["unet.plan"]) + 7] ^= 1
    engine.write_bytes(whole)
    code, stdout, stderr = intsr("extract", engine, "-o", tmp_path / "plans")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"intsr: error: {engine}: member unet.plan is altered")
    assert not (tmp_path / "plans").exists()
