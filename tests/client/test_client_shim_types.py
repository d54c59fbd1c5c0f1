"""The shim's types: what TypeScript accepts beside the official client, what it refuses, and that the module has it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from fal_proxy import client
from support.node import Node

SERVED = "https://proxy.example.com/api/fal/proxy/client.js"
ACCEPTED = f"""
import {{ fal }} from "@fal-ai/client";
import {{ configure, onResult, tokenProvider, type Configuration, type Result }} from "{SERVED}";

fal.realtime.connect("a/b", {{ tokenProvider, onResult: () => {{}} }});
fal.realtime.connect("a/b", {{ tokenProvider: (app) => tokenProvider(app, {{ headers: {{ a: "b" }} }}), onResult() {{}} }});
const token: string = await tokenProvider("a/b", {{ credentials: "include" }});
const chosen: Configuration = {{ relay: null }};
configure(chosen);
configure({{ proxyUrl: new URL("https://a/b"), relay: "ws://localhost:8090" }});
const stop: () => void = onResult("764cabcf", ({{ request_id, payload }}) => [request_id, payload]);
const show = (result: Result<{{ images: string[] }}>) => (result.status === "OK" ? result.payload?.images : result.error);
onResult<{{ images: string[] }}>((await fal.queue.submit("a/b", {{ input: {{}} }})).request_id, show, {{ headers: {{}} }});
export {{ stop, token }};
"""
# The module without its types beside it: whatever they promise must be there, and nothing more.
SAME = """
import * as promised from "./types/client.js";
import * as real from "./module.js";

const kept: typeof promised = real;
const known: Record<keyof typeof promised, unknown> = real;
const nothingMore: Exclude<keyof typeof real, keyof typeof promised> extends never ? true : false = true;
export { kept, known, nothingMore };
"""
REFUSED = [
    ('import "SHIM"; fal;', "TS2304", "the import brings no names by itself"),
    ('import { tokens } from "SHIM"; tokens;', "TS2305", "a name that is not exported"),
    ('import { tokenProvider } from "SHIM"; tokenProvider();', "TS2554", "no app"),
    ('import { tokenProvider } from "SHIM"; tokenProvider(7);', "TS2345", "an app that is no text"),
    ('import { tokenProvider } from "SHIM"; const now: string = tokenProvider("a");', "TS2322", "a promise"),
    ('import { onResult } from "SHIM"; onResult("a");', "TS2554", "nobody to call"),
    ('import { onResult } from "SHIM"; onResult("a", (r) => r.status === "COMPLETED");', "TS2367", "no such status"),
    ('import { configure } from "SHIM"; configure({ url: "a" });', "TS2353", "a setting that nobody knows"),
    ('import { configure } from "SHIM"; configure({ proxyUrl: null });', "TS2322", "no proxy at all"),
]


def _compile(node: Node, folder: Path, **sources: str) -> list[str]:
    """Return TypeScript's complaints about `sources`, strictly, with the served files where a project would keep them."""
    served = {"types/client.d.ts": b"/client.d.ts", "module.js": b"/client.js"}
    folder.joinpath("types").mkdir()
    for name, path in served.items():
        folder.joinpath(name).write_bytes(client.FILES[path].content)
    for name, source in sources.items():
        folder.joinpath(f"{name}.ts").write_text(source, "utf-8")
    folder.joinpath("node_modules").symlink_to(node.folder / "node_modules")
    options = {
        "strict": True,
        "noEmit": True,
        "target": "es2022",
        "module": "preserve",
        "moduleResolution": "bundler",
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        "allowJs": True,
        "paths": {SERVED: ["./types/client.d.ts"]},
    }
    project = {"compilerOptions": options, "files": [f"{name}.ts" for name in sources]}
    folder.joinpath("tsconfig.json").write_text(json.dumps(project), "utf-8")
    command = [node.executable, "node_modules/typescript/bin/tsc", "--project", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout.splitlines()


def test_types_fit_the_official_client_and_the_module(node: Node, tmp_path: Path) -> None:
    assert _compile(node, tmp_path, accepted=ACCEPTED, same=SAME) == []


def test_types_refuse_what_would_fail(node: Node, tmp_path: Path) -> None:
    sources = {f"case{index}": source.replace("SHIM", SERVED) for index, (source, _, _) in enumerate(REFUSED)}
    complaints = "\n".join(_compile(node, tmp_path, **sources))
    for index, (source, code, reason) in enumerate(REFUSED):
        assert f"case{index}.ts" in complaints, reason
        assert any(f"case{index}.ts" in line and code in line for line in complaints.splitlines()), (source, complaints)


@pytest.mark.parametrize("name", ["configure", "tokenProvider", "onResult"])
def test_every_export_is_documented(name: str) -> None:
    types = client.FILES[b"/client.d.ts"].content.decode()
    assert re.search(rf"\*/\nexport function {name}[(<]", types)
