"""What `import retriever` gives, what it costs, and what can be caught."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import retriever
from retriever import errors

HEAVY = [
    "torch",
    "sklearn",
    "sentence_transformers",
    "faiss",
    "transformers",
    "pyarrow",
    "openai",
    "sqlite_utils",
]

EXIT_CODES = {
    "BackendError": 1,
    "BadRows": 7,
    "DelimiterCollision": 2,
    "EmbedderError": 1,
    "Incompatible": 5,
    "IndexCorrupt": 4,
    "IndexLocked": 6,
    "IndexMissing": 3,
    "InvalidInput": 2,
    "MissingDependency": 1,
    "OutOfSpace": 1,
    "RetrieverError": 1,
    "StorageError": 1,
    "TemplateError": 2,
}


def test_the_public_names_are_these_and_no_others():
    assert list(retriever.__all__) == [
        "BadRow",
        "Demonstration",
        "Dropped",
        "Embedder",
        "EmbedderSettings",
        "Example",
        "Fields",
        "IndexSettings",
        "Limits",
        "Prompt",
        "PromptOptions",
        "Recipe",
        "Retriever",
        "RetrieverError",
        "Selection",
        "Template",
        "Update",
        "evaluate",
        "tune",
    ]
    assert len(retriever.__all__) <= 20


@pytest.mark.parametrize("name", retriever.__all__)
def test_every_public_name_can_be_used_and_is_documented(name):
    assert getattr(retriever, name).__doc__
    assert name in dir(retriever)


def test_a_name_that_does_not_exist_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="Retreiver"):
        retriever.Retreiver  # noqa: B018


def _modules_after(statements: str) -> set[str]:
    code = f"{statements}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_nothing_heavy():
    assert _modules_after("import retriever") & set(HEAVY) == set()


def test_using_every_public_name_imports_nothing_heavy_either():
    assert _modules_after("from retriever import *") & set(HEAVY) == set()


def test_the_errors_are_these_each_under_one_root_with_its_exit_code():
    public = {name: getattr(errors, name) for name in errors.__all__}
    found = {name: kind for name, kind in public.items() if issubclass(kind, Exception)}
    assert {name: kind.exit_code for name, kind in found.items()} == EXIT_CODES
    assert all(issubclass(kind, retriever.RetrieverError) for kind in found.values())


def test_no_error_class_of_the_project_is_missing_from_the_list():
    def below(kind: type[Exception]) -> set[str]:
        return {kind.__name__}.union(*(below(child) for child in kind.__subclasses__()))

    ours = {name for name in below(retriever.RetrieverError) if hasattr(errors, name)}
    assert ours == set(EXIT_CODES)


@pytest.mark.parametrize(("name", "builtin"), [("InvalidInput", ValueError), ("MissingDependency", ImportError)])
def test_errors_with_a_python_counterpart_are_caught_as_that_too(name, builtin):
    assert issubclass(getattr(errors, name), builtin)
