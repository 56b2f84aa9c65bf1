"""The snippets of the documentation: Python code runs, commands exist with their options."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from microseg.api.segmenter import Segmenter
from microseg.config.settings import Params
from microseg.errors import VersionNotFoundError
from microseg.slides.images import write_png
from tests.docs.pages import ROOT, Block, blocks, generator

OTHER_COMMANDS = ("export", ".", "curl", "rsync", "docker", "git", "pip", "cd", "rm")


@pytest.fixture
def working_folder(tiny_network: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and the results of a batch; versions of the registry are a tiny network."""

    def load(model: str | int | Path = "production", **_: Any) -> Segmenter:
        if model not in ("production", 3):
            raise VersionNotFoundError(f"no version {model}")
        return Segmenter(tiny_network(mpp=0.5), device="cpu", tile=64, halo=8)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Segmenter, "load", load)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    write_png(tmp_path / "image.png", pixels)
    tifffile.imwrite(tmp_path / "slide.tiff", pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    load().segment_to(["image.png", "slide.tiff"], "results")
    return tmp_path


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, working_folder: Path) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "snippet"})


def lines(block: Block) -> list[str]:
    """Commands of a block; lines that end with a backslash are joined."""
    return [line.strip() for line in block.text.replace("\\\n", " ").splitlines() if line.strip(" #")]


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in lines(block):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "microseg":
            parse(words[1:])
        elif words[0] == "python":
            assert words[1] == "-m", line
        else:
            assert words[0] in OTHER_COMMANDS, line


def parse(words: list[str]) -> None:
    """Parse the arguments of the command ``microseg``, without running it."""
    commands = generator().commands()
    if words in (["--help"], ["--version"]):
        return
    size = 2 if words[0] == "service" else 1
    name = " ".join(words[:size])
    assert name in commands, name
    context = commands[name].make_context(name, words[size:])
    for change in context.params.get("changes") or ():
        path, _, value = change.partition("=")
        section, _, parameter = path.rpartition(".")
        model: Any = Params.model_fields[section].annotation if section else Params
        assert parameter in model.model_fields, change
        assert value, change


@pytest.mark.parametrize(
    "words", ["adpt lab_b", "adapt", "adapt lab_b --no-such-option", "adapt lab_b --set adapt.no=1"]
)
def test_wrong_commands_are_noticed(words: str) -> None:
    with pytest.raises(Exception, match=r"."):
        parse(words.split())
