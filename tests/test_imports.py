"""Imports point one way, the command line starts without torch, torchvision loads beside any torch."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import racnn
from racnn.compat import import_torchvision

ROOT = Path(racnn.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
LAYERS = [
    {"errors"},
    {"sections", "compat", "plain_yaml", "written", "durations"},
    {"ops", "mistakes"},
    {"models", "data"},
    {"config"},
    {"recipes"},
    {"evaluation"},
    {"portable"},
    {"engine"},
    {"report", "export", "serve"},
    {"cli_checkpoint", "cli_data"},
    {"cli_evaluate", "cli_serve", "cli_visualize"},
    {"cli"},
    {"__main__"},
]
LEVELS = {unit: level for level, units in enumerate(LAYERS) for unit in units}
WITHOUT_TORCH = [
    "__init__.py",
    "__main__.py",
    "cli.py",
    "cli_checkpoint.py",
    "cli_data.py",
    "cli_evaluate.py",
    "cli_serve.py",
    "cli_visualize.py",
    "sections.py",
    "errors.py",
    "compat.py",
    "mistakes.py",
    "plain_yaml.py",
    "engine/__init__.py",
    "engine/signals.py",
]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported below a node; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_on_loading(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported when the module is: not inside functions, not for the type checker alone."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for part in node.orelse for name in imports(part))
            continue
        yield from imports(node)


def uphill(unit: str, names: Iterator[str]) -> list[str]:
    """Return those imports of a unit (a module or folder of racnn) that do not point to a lower layer."""
    targets = [name.split(".")[1] for name in names if name.startswith("racnn.")]
    return [
        target
        for target in targets
        if target != unit and target in LEVELS and not LEVELS[target] < LEVELS[unit]
    ]


def parse(file: Path | str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def unit_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


class TestOneWay:
    def test_every_part_of_the_package_has_its_layer(self) -> None:
        found = {unit_of(file) for file in FILES} - {"__init__"}
        assert found == LEVELS.keys()

    @pytest.mark.parametrize("file", [f for f in FILES if str(f) != "__init__.py"], ids=str)
    def test_imports_point_to_lower_layers(self, file: Path) -> None:
        assert uphill(unit_of(file), imports(parse(file))) == []

    @pytest.mark.parametrize("file", FILES, ids=str)
    def test_nothing_imports_tools_or_tests(self, file: Path) -> None:
        assert not {name.split(".")[0] for name in imports(parse(file))} & {"tools", "tests"}

    def test_only_transforms_knows_albumentations(self) -> None:
        users = [
            file.as_posix()
            for file in FILES
            if any(name.split(".")[0] == "albumentations" for name in imports(parse(file)))
        ]
        assert users == ["data/transforms.py"]

    def test_ops_need_torch_alone(self) -> None:
        trees = [parse(file) for file in FILES if unit_of(file) == "ops"]
        names = {name.split(".")[0] for tree in trees for name in imports(tree)}
        assert names - sys.stdlib_module_names == {"torch", "racnn"}


class TestLight:
    @pytest.mark.parametrize("file", WITHOUT_TORCH)
    def test_file_does_not_import_torch_on_loading(self, file: str) -> None:
        roots = {name.split(".")[0] for name in imports_on_loading(parse(file))}
        assert not roots & {"torch", "torchvision", "timm", "albumentations"}

    def test_unknown_public_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="module 'racnn' has no attribute 'RANCC'"):
            racnn.RANCC  # noqa: B018


class TestTorchvision:
    def test_schemas_that_exist_already_do_no_harm(self) -> None:
        code = (
            "import torch\n"
            "from torch import library\n"
            "fragment = library.Library('torchvision', 'FRAGMENT')\n"
            "for name in ('nms', 'qnms'):\n"
            "    if not hasattr(torch.ops.torchvision, name):\n"
            "        fragment.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
            "from racnn.compat import import_torchvision\n"
            "print(import_torchvision().models.vgg11.__name__)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "vgg11\n", done.stderr

    def test_another_fault_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def broken(name: str, *args: Any, **options: Any) -> ModuleType:
            if name == "torchvision":
                raise RuntimeError("libcudart.so.13: cannot open shared object file")
            return real(name, *args, **options)

        before = sys.modules.get("torchvision")
        monkeypatch.setattr(builtins, "__import__", broken)
        with pytest.raises(RuntimeError, match="libcudart"):
            import_torchvision()
        assert sys.modules.get("torchvision") is before


def test_package_is_found_beside_a_folder_of_its_name(tmp_path):
    """As from the folder that a clone lies in."""
    (tmp_path / "racnn").mkdir()
    code = "import racnn; print(racnn.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == racnn.__version__, done.stderr
