"""What the README tells a newcomer to type must work."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from racnn.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"```bash\n(.*?)```", README + USAGE, re.S)
    for line in block.splitlines()
    for command in line.split("&&")
    if command.strip()
]


def test_python_snippet_runs_in_at_most_four_lines(finished, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippet.strip().splitlines()) <= 4
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished.folder)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    assert names["found"].name in names["predictor"].class_names
    assert (tmp_path / "seen.png").is_file()


@pytest.mark.parametrize(
    "words", [c for c in COMMANDS if Path(c[0]).name == "racnn"], ids=lambda words: " ".join(words[1:3])
)
def test_racnn_commands_have_flags_that_exist(words):
    command = typer.main.get_command(app).commands[words[1]]
    if words[1] == "data":
        command, words = command.commands[words[2]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    flags = {word for word in words[2:] if word.startswith("--")}
    assert flags <= known
    for word in words[2:]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("words", [c for c in COMMANDS if "-r" in c], ids=lambda words: words[-1])
def test_requirements_files_exist_and_the_main_one_pins_exactly(words):
    lines = (ROOT / words[-1]).read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert packages
    assert all("==" in line for line in packages)


def test_files_named_in_the_reading_order_exist():
    order = README[README.index("Read in this order") :]
    folder = Path("racnn")
    for name in re.findall(r"`([\w/]+\.py)`", order):
        folder = Path(name).parent if "/" in name else folder
        assert (ROOT / folder / Path(name).name).is_file(), name


def test_every_configuration_stands_in_the_table():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        short = path.name.replace("cub10_vgg16_cpu_one_scale", "..._one_scale")
        assert f"`{short}`" in USAGE, path.name


def test_what_is_linked_is_there():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_can_be_read_in_one_go():
    assert len(README.split()) <= 800
