"""The page's files: what is bundled is what the lock says, nothing is asked of anybody else, and a wheel carries it all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from browser.pictures import PICTURES
from fal_proxy import admin, demo
from fal_proxy.errors import ERROR_TYPES
from support.node import Node, NodeMissing, install

PAGE = Path(demo.__file__).parent / "page"
ADMIN_PAGE = Path(admin.__file__).parent / "page"
BUNDLE = Path(__file__).parent / "bundle"
BUILT = ("fal-client.js", "fal-client.LICENSES.txt")
WRITTEN = sorted(path for path in PAGE.rglob("*") if path.is_file() and path.name not in BUILT)


@pytest.fixture(scope="module")
def node() -> Node:
    """Return Node with esbuild and the client, or skip."""
    try:
        return install(BUNDLE)
    except NodeMissing as missing:
        pytest.skip(str(missing))


def test_bundle_is_what_the_lock_makes_of_the_client(node: Node, tmp_path: Path) -> None:
    command = [node.executable, "build.mjs", str(tmp_path)]
    subprocess.run(command, cwd=BUNDLE, check=True, capture_output=True, timeout=120)
    for name in BUILT:
        assert (tmp_path / name).read_bytes() == (PAGE / name).read_bytes(), f"build {name} anew: bundle/build.mjs"


def test_every_bundled_package_comes_with_its_licence() -> None:
    packages = json.loads((BUNDLE / "package-lock.json").read_text("utf-8"))["packages"]
    bundled = {
        f"{path.removeprefix('node_modules/')} {about['version']}"
        for path, about in packages.items()
        if path and "esbuild" not in path
    }
    texts = (PAGE / "fal-client.LICENSES.txt").read_text("utf-8").split("\n" + "-" * 80 + "\n\n")
    assert {text.partition("\n")[0] for text in texts} == bundled
    assert all("Copyright" in text and "AS IS" in text.replace("“", "").replace('"', "") for text in texts)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_file_of_the_page_names_another_host_or_is_long(path: Path) -> None:
    text = path.read_text("utf-8")
    assert set(re.findall(r"(?:https?|wss?)://[\w.-]+", text)) <= {"http://www.w3.org"}, (
        "an SVG's namespace, and nothing else"
    )
    assert len(text.splitlines()) <= 320


def test_page_has_words_for_every_error_of_the_proxy() -> None:
    ours = (PAGE / "trouble.js").read_text("utf-8").partition("const OURS = {")[2].partition("\n};")[0]
    assert set(re.findall(r"^  (\w+): \[", ours, re.MULTILINE)) == set(ERROR_TYPES)


def test_markup_holds_no_script_no_style_and_no_handler() -> None:
    page = (PAGE / "index.html").read_text("utf-8")
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page)


def test_only_known_kinds_of_files_are_served() -> None:
    kinds = {path.suffix for path in PAGE.rglob("*") if path.is_file()}
    assert kinds == {".html", ".css", ".js", ".svg", ".txt"}


def test_wheel_carries_the_page_and_nothing_of_node(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        for path in (*WRITTEN, *(PAGE / name for name in BUILT)):
            assert packed.read(f"fal_proxy/demo/page/{path.relative_to(PAGE).as_posix()}") == path.read_bytes()
        for path in ADMIN_PAGE.iterdir():
            assert packed.read(f"fal_proxy/admin/page/{path.name}") == path.read_bytes()
    assert not [name for name in names if "node_modules" in name or "package" in name]


def test_readme_shows_small_pictures_of_the_two_pages() -> None:
    root = Path(__file__).parents[2]
    shown = re.findall(r"!\[[^\]]{20,}\]\((docs/[\w-]+\.png)\)", (root / "README.md").read_text("utf-8"))
    assert sorted(shown) == sorted(["docs/admin.png", *(f"docs/{name}" for name, _, _ in PICTURES)])
    for name in shown:
        assert (root / name).read_bytes().startswith(b"\x89PNG")
        assert (root / name).stat().st_size < 200_000
