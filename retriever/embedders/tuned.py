"""A model that was fine-tuned for one index, as its files: the index holds them, and the model is loaded from them.

Only what the library itself writes, and nothing that could run, is taken: JSON, text, SentencePiece models and
safetensors. The library is asked for a folder, so the files are put into a temporary one for as long as it loads.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.embedders.base import Embedder, EmbedderSettings
from retriever.embedders.transformer import load_transformer
from retriever.errors import EmbedderError
from retriever.listening import Note

PREFIX = "tuned:"
_NAMES = "folder"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_LEFT_OUT = ("README.md", ".gitattributes")


@dataclass(frozen=True)
class TunedModel:
    """A fine-tuned model.

    Attributes:
        name: `tuned:` and the name of the model that it was made from.
        files: The content of each file by its path in the model's folder, with slashes.

    Raises:
        EmbedderError: A path that leads out of the folder, or a kind of file that is not taken.
    """

    name: str
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        for path in self.files:
            if not all(_PART.fullmatch(part) for part in path.split("/")) or not path.endswith(_SUFFIXES):
                raise EmbedderError(
                    f"a tuned model with the file {path!r}", expected=f"files of a model: {', '.join(_SUFFIXES)}"
                )
        if "modules.json" not in self.files:
            raise EmbedderError("a tuned model without modules.json", expected="a sentence-transformers model folder")

    @classmethod
    def from_folder(cls, folder: Path, name: str) -> TunedModel:
        """From a folder as the library saves a model.

        Args:
            folder: The folder.
            name: Of the model that it was made from.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _LEFT_OUT)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return cls(f"{PREFIX}{name.removeprefix(PREFIX)}", files)

    @classmethod
    def from_state(cls, name: str, state: Mapping[str, NDArray[np.generic]]) -> TunedModel:
        """The model whose `state` this is.

        Raises:
            EmbedderError: It is no such state.
        """
        try:
            paths = json.loads(state[_NAMES].tobytes())
            return cls(name, {str(path): state[f"file_{n}"].tobytes() for n, path in enumerate(paths)})
        except (KeyError, ValueError, TypeError) as error:
            raise EmbedderError(f"the files of embedder {name} do not belong together: {error!r}") from error

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What an index stores of it: each file as bytes, and their paths."""
        contents = {f"file_{n}": np.frombuffer(content, np.uint8) for n, content in enumerate(self.files.values())}
        return {_NAMES: np.frombuffer(json.dumps(list(self.files)).encode(), np.uint8), **contents}

    @property
    def digest(self) -> str:
        """What tells it from any other model: a SHA-256, in hexadecimal."""
        facts = [(path, hashlib.sha256(content).hexdigest()) for path, content in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder with its files, there as long as the context."""
        with tempfile.TemporaryDirectory(prefix="retriever-model-") as made:
            for path, content in self.files.items():
                file = Path(made, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            yield Path(made)

    def load(self, settings: EmbedderSettings, note: Note) -> Embedder:
        """The model, ready to embed; exported for ONNX Runtime once, like any other, where that is possible.

        Args:
            settings: Engine, device, prompts and batch size; the name does not matter.
            note: Told in one line why it is run by torch when nobody asked for that.
        """
        return load_transformer(settings, note, origin=self)
