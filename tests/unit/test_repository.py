"""What the repository promises about itself: the lock, the documents, and nothing of any one machine."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import fal_proxy
from fal_proxy.client import FILES
from run import LONGEST
from support.documents import README, with_tables

ROOT = README.parent
# Written in pieces, so that this file does not hold what it forbids.
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "deb." + "debian.org"]
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")


def _committed() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "ignore")


def test_lock_is_what_pyproject_resolves_to_and_every_line_has_a_hash(tmp_path: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    copy = tmp_path / "requirements.lock"
    copy.write_text(lock, "utf-8")
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--generate-hashes",
        "--no-emit-index-url",
        "--no-header",
    ]
    command += ["--no-annotate", "--all-extras", "--group", "dev", "pyproject.toml", "--output-file", str(copy)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert copy.read_text("utf-8") == lock
    packages = re.findall(r"^[a-z].*?(?=^[a-z]|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert len(packages) > 30
    assert all("--hash=sha256:" in package for package in packages)


def test_readme_tables_are_what_the_code_says() -> None:
    text = README.read_text("utf-8")
    assert with_tables(text) == text, "run: ./run python tests/support/documents.py"


def test_no_committed_file_names_a_registry_or_a_path_of_one_machine() -> None:
    for path in _committed():
        text = _text(path)
        assert not any(registry in text for registry in REGISTRIES), path
        assert path.name == "test_repository.py" or not MACHINE_PATHS.search(text), path


def test_npm_locks_hold_versions_and_hashes_only() -> None:
    locks = [path for path in _committed() if path.name == "package-lock.json"]
    assert len(locks) > 1
    for text in map(_text, locks):
        assert '"resolved"' not in text
        assert '"integrity"' in text


def test_no_source_file_has_two_jobs() -> None:
    long = [path for path in (ROOT / "proxy").rglob("*.py") if len(_text(path).splitlines()) > 320]
    assert not long


def test_gate_begins_with_what_exists() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).exists()] == []


def test_version_is_the_packages_and_the_changelog_knows_it() -> None:
    assert fal_proxy.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_runtime_dependency_earns_a_line_in_architecture() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    names += [re.split(r"[<>=]", line)[0] for lines in project["optional-dependencies"].values() for line in lines]
    table = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("What we depend on")[2]
    assert [name for name in names if name not in table] == []


def test_readme_begins_with_what_it_is_the_http_and_the_one_line_of_browser_code() -> None:
    first = "\n".join(README.read_text("utf-8").splitlines()[:30])
    for needed in ("x-fal-target-url", "Authorization: Key", "./run", "proxyUrl", "Not for you"):
        assert needed in first


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    promises = (ROOT / "SECURITY.md").read_text("utf-8").partition("## Promises")[2].partition("\n## ")[0]
    have = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", _text(path))
    }
    named = re.findall(r"`(test_\w+)`", promises)
    assert [name for name in named if name not in have] == []
    for promise in promises.strip().split("\n\n"):
        assert promise.startswith("**"), promise
        assert "`test_" in promise, promise


def test_wheel_holds_what_pages_load(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for path, file in FILES.items():
            assert packed.read(f"fal_proxy/client{path.decode()}") == file.content


def test_shim_keeps_its_promise_of_four_and_a_half_kilobytes() -> None:
    assert len(FILES[b"/client.js"].content) < 4608


def test_readme_pins_the_shim_that_is_served() -> None:
    digest = hashlib.sha384(FILES[b"/client.js"].content).digest()
    pinned = re.findall(r'integrity="(sha384-[^"]+)"', README.read_text("utf-8"))
    assert pinned == ["sha384-" + base64.b64encode(digest).decode()]
