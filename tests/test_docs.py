"""The documents say what is so: every block of code in them is run, every name in them exists.

Blocks by language tag, the only ones allowed:

    python       executed, all of a section in one namespace and one directory, which begin as the README's first two
                 sections leave them; only the README has blocks that are run
    output       directly after a python block: what it printed
    console      lines that start with "$ " are run by bash in that directory, "> " continues one; the other lines are
                 what it printed, standard output first. Standard output is a terminal of 100 columns.
    toml         loaded as a recipe, or as a template when it is introduced by <!-- template -->
    text         not run: a picture, a layout, or a command that installs something (those are listed in NOT_RUN)

Shown and real output are compared after `normalised`: seconds in parentheses, such as "(0.3 s)", count as equal.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
import typer.main

import cli
import retriever
from retriever import EmbedderSettings, IndexSettings, Recipe, Retriever, errors
from retriever.adaptation.linear_map import on_grid
from retriever.adaptation.stored import Adaptation
from retriever.backends import _FORMS
from retriever.export import FORMS
from retriever.formats import Limits
from retriever.live import COMPACT_AFTER
from retriever.prompting import TEMPLATES, load_template
from retriever.query_encoder import QueryEncoder
from retriever.ranking.guard import LEVELS
from retriever.ranking.where import predicate
from retriever.stored_embedder import StoredEmbedder
from retriever.writing import Searched
from tests.support import Words, build, fail

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "FORMAT.md", "SECURITY.md", "CHANGELOG.md")
TAGS = {"python", "output", "console", "toml", "text"}
RUN = {"python", "output", "console"}
NOT_RUN = {"scripts/demo", "scripts/test", "pip install -c constraints.txt '.[offline]'"}
COLUMNS = 100

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(
    r"(?<![\w/])((?:scripts|tests|indexes|retriever|benchmarks)/\w[\w./]*\w|[A-Z]+\.md|constraints\.txt)"
)


class Block(NamedTuple):
    tag: str
    code: str
    line: int
    before: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    text = read(name)
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, text[: match.start()].rstrip())
        for match in _BLOCK.finditer(text)
    ]


def section(name: str, title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", read(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no section {title!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def normalised(text: str) -> str:
    seconds = re.sub(r"\(\d+\.\d+ s\)", "(… s)", text.replace("\r\n", "\n"))
    return "\n".join(line.rstrip() for line in seconds.strip("\n").split("\n"))


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output that is shown for it."""
    commands: list[list[str]] = []
    shown: list[list[str]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            commands.append([line[2:]])
            shown.append([])
        elif line.startswith("> ") and not shown[-1]:
            commands[-1].append(line[2:])
        else:
            shown[-1].append(line)
    yield from (("\n".join(c), "\n".join(s)) for c, s in zip(commands, shown, strict=True))


def shell(command: str, directory: Path) -> str:
    """What a command prints, standard output being a terminal."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "COLUMNS": str(COLUMNS),
        "TERM": "dumb",
        "HF_HUB_OFFLINE": "1",
    }
    master, terminal = pty.openpty()
    printed = bytearray()
    with (directory / ".stderr").open("w+b") as complaints:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=complaints,
        )
        os.close(terminal)
        with contextlib.suppress(OSError):  # a terminal whose last writer is gone gives an error on Linux, not an end
            while chunk := os.read(master, 65536):
                printed += chunk
        os.close(master)
        process.wait(timeout=60)
        complaints.seek(0)
        return printed.decode() + complaints.read().decode()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_has_one_of_the_known_tags(name: str) -> None:
    tags = {block.tag for block in blocks(name)}
    assert tags <= TAGS
    assert name == "README.md" or not tags & RUN
    assert len(re.findall(r"^ *```", read(name), re.MULTILINE)) == 2 * len(blocks(name))


def sections() -> dict[str, list[Block]]:
    """The blocks of the README that are run, by the heading above them."""
    found: dict[str, list[Block]] = {}
    for block in blocks("README.md"):
        if block.tag in RUN:
            heading = re.findall(r"^#+ (.+)$", _BLOCK.sub("", block.before + "\n"), re.MULTILINE)[-1]
            found.setdefault(heading, []).append(block)
    return found


def carry_out(found: list[Block], directory: Path, namespace: dict[str, object]) -> None:
    """Runs blocks one after the other and compares what they print."""
    printed = ""
    for block in found:
        where = f"README.md:{block.line}"
        if block.tag == "python":
            assert not printed, f"the output before {where} is not shown"
            with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.chdir(directory):
                exec(compile("\n" * block.line + block.code, where, "exec"), namespace)
            printed = output.getvalue()
        elif block.tag == "output":
            assert normalised(block.code) == normalised(printed), where
            printed = ""
        else:
            for command, shown in steps(block):
                assert normalised(shell(command, directory)) == normalised(shown), f"{where}: {command}"
    assert not printed


def contents(directory: Path) -> dict[str, list[object]]:
    """What the indexes hold and go by, whatever happened to them before."""
    found: dict[str, list[object]] = {}
    for path in directory.glob("*.index"):
        with Retriever.open(path, note=fail) as index:
            about = index.info()
            examples = [example for _, example in index.snapshot.present()]
            found[path.name] = [examples, *(about.get(key) for key in ("settings", "embedder", "fusion", "recipe"))]
    return found


class Begun(NamedTuple):
    directory: Path
    namespace: dict[str, object]
    contents: dict[str, list[object]]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """What somebody has who made the indexes of the first two sections."""
    directory, namespace = tmp_path_factory.mktemp("begun"), {"__name__": "__main__"}
    carry_out(sections()["Library"], directory, namespace)
    [first] = sections()["Command line"]
    for command, _ in itertools.islice(steps(first), 2):  # the files, and the index of them
        shell(command, directory)
    return Begun(directory, namespace, contents(directory))


@pytest.mark.parametrize("title", sections())
def test_every_block_prints_what_is_shown(title: str, begun: Begun, tmp_path: Path) -> None:
    """Read in order: a section leaves the indexes with what they had, so each is run as the first after these."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    if title not in ("Library", "Command line"):
        shutil.copytree(begun.directory, tmp_path, dirs_exist_ok=True)
        namespace = dict(begun.namespace)
    carry_out(sections()[title], tmp_path, namespace)
    left = contents(tmp_path)
    assert left
    assert left == {name: begun.contents[name] for name in left}


def test_every_toml_block_is_a_recipe_or_a_template(tmp_path: Path) -> None:
    found = [(name, block) for name in DOCUMENTS for block in blocks(name) if block.tag == "toml"]
    assert len(found) >= 2
    for name, block in found:
        path = tmp_path / "block.toml"
        path.write_text(block.code, encoding="utf-8")
        if block.before.endswith("<!-- template -->"):
            assert load_template(path).name == tomllib.loads(block.code)["name"]
        else:
            sections = tomllib.loads(block.code)
            recipe = Recipe.of(path).to_dict()
            assert all(recipe[s][k] == v for s, keys in sections.items() for k, v in keys.items()), (name, block.line)


def test_exactly_the_commands_that_install_something_are_not_run() -> None:
    first_words = {"scripts", "pip", "retriever", "python"}
    commands = {
        line.split("  #")[0].rstrip()
        for block in blocks("README.md")
        if block.tag == "text"
        for line in block.code.splitlines()
        if re.split(r"[ /]", line)[0] in first_words
    }
    assert commands == NOT_RUN
    scripts = {command for command in NOT_RUN if command.startswith("scripts/")}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_newest_version_of_the_changelog_is_that_of_the_project() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|unreleased)", one).groups() for one in headings]
    assert all(date != "unreleased" for _, date in versions[1:])
    assert versions[0][0] == tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert versions == sorted(versions, key=lambda v: [int(part) for part in v[0].split(".")], reverse=True)


def own_files() -> list[Path]:
    skipped = {".venv", ".git", "__pycache__", "build", "dist", "shared"}
    kinds = {".py", ".md", ".toml", ".txt", ".jsonl", ""}
    places = [ROOT / place for place in ("indexes", "retriever", "tests", "benchmarks", "scripts", ".ci")]
    files = [*ROOT.glob("*"), *(file for place in places for file in place.rglob("*"))]
    return [f for f in files if f.is_file() and f.suffix in kinds and not skipped & set(f.relative_to(ROOT).parts)]


def test_no_file_mentions_a_path_of_somebodys_machine() -> None:
    homes = tuple("/" + name + "/" for name in ("work", "root"))
    files = own_files()
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        # A path, not the middle of an address such as https://host/work/.
        if any(re.search(rf"(?<![\w.\-]){home}", line) for home in homes)
    ]
    assert found == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name: str) -> None:
    named = set(_FILE.findall(read(name)))
    assert named
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_to_files_and_headings(name: str) -> None:
    targets = [target for target in _LINK.findall(read(name)) if not target.startswith(("http://", "https://"))]
    assert targets
    for target in targets:
        file, _, anchor = target.partition("#")
        assert (ROOT / (file or name)).is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(file or name), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    table_says = {
        name: int(code.strip("`"))
        for code, _, names in table(section("README.md", "Exit codes"))
        for name in re.findall(r"`(\w+)`", names)
    }
    assert table_says == {kind.__name__: kind.exit_code for kind in kinds}


def test_every_command_and_no_other_is_documented() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    documented = {row[0].strip("`").split()[1] for row in table(section("README.md", "Commands"))}
    assert documented == set(group.commands)


def test_every_public_name_and_no_other_is_in_the_table_of_names() -> None:
    named = [name for row in table(section("README.md", "Python names")) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(retriever.__all__)


@pytest.mark.parametrize("title", ["Leak guard", "Templates", "Backends", "Batch export"])
def test_tables_list_exactly_what_exists(title: str) -> None:
    exists = {
        "Leak guard": set(LEVELS),
        "Templates": set(TEMPLATES),
        "Backends": {re.split(":", form)[0] for form in re.findall(r"[\w-]+:[A-Z]", _FORMS)},
        "Batch export": set(FORMS),
    }[title]
    first = {row[0].strip("`").split(":")[0] for row in table(section("README.md", title))}
    assert first == exists


def test_every_filter_expression_can_be_parsed() -> None:
    expressions = [
        e for row in table(section("README.md", "Filter expressions")) for e in re.findall("`(.*?)`", row[0])
    ]
    assert len(expressions) >= 5
    assert all(callable(predicate(expression)) for expression in expressions)
    [mapping] = re.findall(r"`(\{.*\})`", section("README.md", "Filter expressions"))
    assert callable(predicate(json.loads(mapping)))


def test_numbers_in_the_documents_are_those_of_the_code() -> None:
    assert f"{COMPACT_AFTER:,} changes" in read("FORMAT.md")
    assert f"{Limits().field_bytes // 2**20} MiB" in section("README.md", "Input")


def functions_of(name: str) -> set[str]:
    tree = ast.parse(read(name))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_tests_that_exist() -> None:
    promised = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read("SECURITY.md"))
    assert len(promised) >= 15
    assert [f"{file}::{test}" for file, test in promised if test not in functions_of(file)] == []
    assert all(re.search(r"`tests/[\w/]+\.py::", row[-1]) for row in table(section("SECURITY.md", "What is promised")))


def test_an_endpoint_that_only_an_index_names_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-must-not-leave")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        stored = {
            "name": "openai:m",
            "dim": 2,
            "fingerprint": "2:00",
            "prompts": {"query": "", "example": ""},
            "settings": asdict(EmbedderSettings("openai:m", base_url=url)),
        }
        encoder = QueryEncoder(StoredEmbedder(stored, {}), None, fail)
        with pytest.raises(errors.Incompatible, match=re.escape(f"OPENAI_BASE_URL={url}")) as refusal:
            encoder.queries(["hello"])
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "sk-must-not-leave" not in str(refusal.value)


def test_the_recipe_of_the_readme_comes_back_from_an_export_and_makes_the_same_one(tmp_path: Path) -> None:
    [shown] = [block.code for block in blocks("README.md") if block.tag == "toml" and "[retrieve]" in block.code]
    (tmp_path / "readme.toml").write_text(shown.replace('by = "maxsim"', "idf = false"), encoding="utf-8")
    commands = """
    retriever build pool.jsonl -o i --embedder latent
    retriever export i queries.jsonl -o first.jsonl --recipe readme.toml
    python -c 'import json; print(json.dumps(json.loads(open("first.jsonl").readline())["recipe"]))' > back.json
    retriever export i queries.jsonl -o second.jsonl --recipe back.json
    """
    pool = [{"id": str(i), "input": f"card {i} was lost {i % 7}", "output": f"o{i % 5}"} for i in range(60)]
    for number, example in enumerate(pool):
        example |= {"language": ("en", "de", "fr")[number % 3], "priority": number % 4}
    queries = [{"id": f"q{i}", "input": f"lost card {i}"} for i in range(5)]
    for name, rows in (("pool", pool), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for command in commands.strip().splitlines():
        shell(command.strip(), tmp_path)
    first = (tmp_path / "first.jsonl").read_bytes()
    assert len(first.splitlines()) == 5
    assert (tmp_path / "second.jsonl").read_bytes() == first
    assert Recipe.of(tmp_path / "back.json") == replace(
        Recipe.of(tmp_path / "readme.toml").filled(), retrieve=Recipe.of(tmp_path / "back.json").retrieve
    )


def test_the_format_document_describes_every_file_of_an_index(tmp_path: Path) -> None:
    pool = [{"input": f"text {i}", "output": str(i), "label": str(i % 2)} for i in range(40)]
    settings = IndexSettings(ann="HNSW8")
    with Retriever.build(pool, tmp_path / "i", embedder="latent", settings=settings, weight=0.5) as built:
        built.add({"input": "one more", "output": "x"})
    text = read("FORMAT.md")
    others = IndexSettings(token_vectors=True, vectors="int8")
    with build(pool, tmp_path / "t", embedder=Words(), settings=others, weight=0.5) as built:
        adaptation = Adaptation.learned(on_grid(np.eye(built.snapshot.dim)), {})
        with built._live.session() as session:
            built._live.compact(session, searched=Searched(adaptation, None))
    names = {path.name for path in tmp_path.glob("*/**/*")}
    assert {"CURRENT", "LOCK", "pool.sqlite", "ann.faiss", "embedder_idf.npy", "manifest.json"} <= names
    assert [n for n in sorted(names) if f"`{n}`" not in text and not re.fullmatch(r"gen-\d+|pool.sqlite-\w+", n)] == []
    arrays = {row[0].strip("`") for row in table(section("FORMAT.md", "Arrays"))}
    assert arrays == {n for n in names if n.endswith(".npy")}
