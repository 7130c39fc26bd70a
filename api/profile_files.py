"""Profiles of the user's own: `data_dir/profiles/<name>.json`, and the trends that they were read off, beside them."""

import json
from pathlib import Path
from typing import Any

from search.errors import ProfileError
from search.profiles import PROFILES, Profile, profile_named
from search.trends import Trends
from vit.files import write_text

FOLDER = "profiles"
MAX_BYTES = 2**20


def own_profiles(root: Path) -> dict[str, Profile]:
    """Every profile of the data folder that can be read, by name."""
    found = {}
    for path in _files(root):
        try:
            profile = load_profile(path)
        except ProfileError:
            continue
        found[profile.name] = profile
    return found


def unreadable(root: Path) -> dict[str, str]:
    """Files of the folder that are no profiles, and why."""
    found = {}
    for path in _files(root):
        try:
            load_profile(path)
        except ProfileError as error:
            found[path.name] = str(error)
    return found


def load_profile(path: Path) -> Profile:
    """
    Raises:
        ProfileError: no file, too large, not JSON, or no profile.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ProfileError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; no profile is")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"no profile at {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not JSON: {error}") from None
    try:
        if isinstance(document, dict):
            document.pop("trends", None)
        return Profile.from_dict(document)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}", error.field) from None


def resolve_profile(name: str, root: Path) -> Profile:
    """A profile by name, ours or one of the data folder, or of a .json file.

    Raises:
        UnknownNameError: no such name; lists what there is.
        ProfileError: a file that is none.
    """
    if name.endswith(".json") or "/" in name:
        return load_profile(Path(name))
    return profile_named(name, own_profiles(root))


def trends_of(name: str, root: Path) -> dict[str, Any] | None:
    """What a learned profile was read off, as `Trends.to_dict`; None where it was not learned here."""
    try:
        document = json.loads((root / FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    trends = document.get("trends") if isinstance(document, dict) else None
    return trends if isinstance(trends, dict) else None


def save_profile(profile: Profile, root: Path, trends: Trends | None = None) -> Path:
    """
    Raises:
        ProfileError: a name that one of ours has.
    """
    if profile.name in PROFILES:
        raise ProfileError(f"{profile.name} is a profile that comes with vitfit; choose another name", "name")
    document = profile.to_dict() | ({} if trends is None else {"trends": trends.to_dict()})
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{profile.name}.json"
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def _files(root: Path) -> list[Path]:
    try:
        return sorted(path for path in (root / FOLDER).iterdir() if path.suffix == ".json" and path.is_file())
    except OSError:
        return []
