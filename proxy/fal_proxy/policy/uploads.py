"""What may be uploaded: content types, file names, and first bytes that give a type the lie. Pure; dials nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.headers import media_type

MAX_INITIATE_BYTES = 16 * 1024
UNTYPED = "application/octet-stream"  # what bytes without a type are
SNIFFED_BYTES = 512
MAX_NAME_BYTES = 255
_MAX_TYPE_CHARS = 255
_WORD = r"[A-Za-z0-9!#$%&'+.^_`|~-]+"  # of RFC 9110's tokens all but the asterisk, which is ours
_TYPE = re.compile(rf"{_WORD}/{_WORD}(?:[ \t]*;[ -~]*)?")
_GLOB = re.compile(rf"{_WORD}/(?:\*|{_WORD})")
# Media that a browser shows by itself, which no honest file of begins as a document does (cf. WHATWG MIME Sniffing §7.1).
_MEDIA = ("image/", "video/", "audio/")
_MARKUP = re.compile(
    rb"[\t\n\f\r ]*<(?:!doctype|!--|\?xml|(?:html|head|body|script|iframe|style|title|meta|svg|h1|div|font|table|br|img)"
    rb"(?=[\t\n\f\r />]))",
    re.IGNORECASE,
)
_XML = re.compile(rb"[\t\n\f\r ]*<(?:\?xml|!--|svg(?=[\t\n\f\r />])|!doctype[\t\n\f\r ]+svg)", re.IGNORECASE)


class UploadRules:
    """The content types that a deployment takes."""

    def __init__(self, content_types: Sequence[str]) -> None:
        """Take `type/subtype` or `type/*`; raise ValueError for anything else."""
        for glob in content_types:
            if not _GLOB.fullmatch(glob):
                raise ValueError(f"{glob!r} is no content type such as image/png or image/*")
        self._exact = frozenset(glob.lower() for glob in content_types)

    def judge_initiate(self, body: bytes) -> bytes:
        """Return the body to send: the type as given, the name made harmless, nothing else. Raises Refusal input_denied."""
        try:
            given = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, ValueError):
            given = None
        if not isinstance(given, dict):
            raise Refusal("input_denied", "the start of an upload must be a JSON object")
        kept = {}
        if "content_type" in given:  # without it fal has an error of its own
            kept["content_type"] = self.judge_type(given["content_type"])
        if (name := given.get("file_name")) is not None:
            if not isinstance(name, str):
                raise Refusal("input_denied", "file_name must be text")
            kept["file_name"] = harmless_name(name)
        return msgspec.json.encode(kept)

    def judge_type(self, content_type: object) -> str:
        """Return the content type as given. Raises Refusal input_denied for one that is not listed."""
        if (
            not isinstance(content_type, str)
            or len(content_type) > _MAX_TYPE_CHARS
            or not _TYPE.fullmatch(content_type)
        ):
            raise Refusal("input_denied", "content_type must be a content type such as image/png")
        kind = essence(content_type)
        if kind not in self._exact and kind.partition("/")[0] + "/*" not in self._exact:
            raise Refusal("input_denied", f"uploads of {kind} are not accepted here (storage.content_types)")
        return content_type


def essence(content_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return media_type(content_type.encode("latin-1", "replace")).decode("latin-1").lower()


def harmless_name(name: str) -> str:
    """Return a file name of one segment: no separators, controls, or characters that turn the direction of text.

    Longer ones than MAX_NAME_BYTES lose their middle, so that the extension stays.
    """
    shown = "".join("_" if _harms(char) else char for char in unicodedata.normalize("NFC", name)).strip(" .") or "file"
    if len(shown.encode()) <= MAX_NAME_BYTES:
        return shown
    stem, dot, extension = shown.rpartition(".")
    if not stem or len(extension.encode()) > 16:
        stem, dot, extension = shown, "", ""
    room = MAX_NAME_BYTES - len((dot + extension).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + extension


def judge_first_bytes(content_type: str, first: bytes, *, begins: bool = True) -> None:
    """Raise Refusal input_denied when media begins as HTML, SVG or a script in markup does.

    An SVG that calls itself one may begin as XML. Everything else is taken at its word: what is no media is no document
    either, unless its type says so, and the type was judged. Later parts (not `begins`) are judged too, because a file
    may be completed without its first one; only those of a type in XML may begin with any of its tags.
    """
    kind = essence(content_type)
    if not kind.startswith(_MEDIA) or (kind.endswith("+xml") and not begins):
        return
    plain = _plain(first[:SNIFFED_BYTES])
    if not _MARKUP.match(plain):
        return
    if kind.endswith("+xml") and _XML.match(plain):
        return
    raise Refusal("input_denied", f"this is called {kind} and begins as a web page or a drawing in XML does")


def _harms(char: str) -> bool:
    # Cc controls, Cf invisible formatting (all of bidi), Cs lone surrogates, Zl and Zp line ends.
    return char in '/\\:<>"|?*' or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _plain(first: bytes) -> bytes:
    """Return the first bytes as ASCII markup would be spelled, whatever their byte order mark says."""
    if first.startswith(b"\xef\xbb\xbf"):
        return first[3:]
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return first.decode("utf-16", "replace").encode("latin-1", "replace")
    return first
