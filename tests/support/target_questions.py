"""Makes targets that are nearly right, puts them to the proxy and to the second reading, and says where they differ.

Everything random comes from the caller's generator: a seed for a long run, hypothesis for one that shrinks.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from fal_proxy.errors import Refusal
from fal_proxy.policy.target import resolve
from support.corpus import cases
from support.target_rules import STATUSES, Refused, Understood, judge

CORPUS = tuple(line for case in cases() for line in case.lines)
ALLOWED = tuple(case.lines[0] for case in cases() if case.allowed)
METHODS = ("POST", "GET", "PUT", "DELETE", "PATCH") * 3 + ("HEAD", "OPTIONS", "post", "QUERY", "")
PLANS = (("POST",), ("POST",), ("POST", "GET", "PUT", "DELETE", "PATCH"), ("GET",), (), ("HEAD", "OPTIONS", "get"))

HOSTS = (
    (b"fal.run",) * 8
    + (b"queue.fal.run",) * 12
    + (b"rest.fal.ai",) * 3
    + (b"rest.alpha.fal.ai",)
    + (b"wma.fal.run",) * 3
)
WRONG_HOSTS = (b"fal.run:443", b"FAL.run", b"u@fal.run", b"fal.run.", b"a.wma.fal.run", b"v3.fal.media", b"", b"fal.ai")
SCHEMES = (b"http://", b"HTTPS://", b"https:/", b"https:///", b"wss://", b"", b" https://")
PLAIN = (b"fal-ai", b"flux", b"dev", b"a", b"v1.1", b"my-user", b"CassetteAI", b"110602490", b"x_y~z")
WORDS = (b"stream", b"realtime", b"requests", b"workflows", b"comfy", b"status", b"response", b"cancel")
SPECIAL = (
    *(b"a%20b", b"caf%C3%A9", b"caf%c3%a9", b"%c0%ae", b"app%40v2", b"!$&'()*+=:@", b"...", b".a", b"%80", b"a%2Cb"),
    *(b"", b".", b"..", b"%2e", b"%2E%2e", b".%2e", b"a%2fb", b"a%5Cb", b"a%25b", b"a%3Bb", b"a%3f", b"a%23", b"%00"),
    *(b"%1f", b"%7F", b"%64ev", b"%7e", b"a;b", b"a,b", b"%", b"%4", b"%zz", b"%u002e", b"[a]", b"a^b", b"Stream"),
    *(b"Requests", b"Workflows", b"strea%6d", b"requests%20", b"streams", b"xstream"),
)
IDS = (
    *(b"764cabcf-b745-4b3e-ae38-1200304cf45b", b"0190f3a0a7c17b5e9c1a2b3c4d5e6f70", b"x", b"A_b-9", b"requests"),
    *(b"status", b"x" * 128, b"x" * 129, b"a.b", b"a~b", b"a%20b", b"a:b", b"", b"..", b"%2e"),
)
ACTIONS = (b"", b"/", b"/status", b"/status/stream", b"/response", b"/cancel") * 3 + (
    *(b"/status/", b"/status/stream/", b"/response/", b"/cancel/", b"/stream", b"/status/x", b"/requests/x", b"//"),
)
REST = (b"/tokens/", b"/tokens/realtime", b"/storage/auth/token", b"/storage/upload/initiate") * 3 + (
    *(b"/storage/upload/initiate-multipart", b"/storage/upload/complete-multipart", b"/tokens", b"/tokens/realtime/"),
    *(
        b"/storage/upload/",
        b"/storage/upload/initiate/",
        b"/storage/upload/x",
        b"/storage/auth/token/",
        b"/",
        b"/Tokens/",
    ),
    *(b"/users/current", b"/storage/upload/initiate/initiate", b"//tokens/", b"/tokens//", b"/fal-ai/flux"),
)
WMA = (b"/ice", b"/session", b"/session/heartbeat") * 3 + (b"/session/", b"/ice/x", b"/Ice", b"/tokens/", b"/")
KEYS = (
    *(b"logs", b"logs", b"fal_webhook", b"fal_webhook", b"fal_max_queue_length", b"storage_type", b"a", b""),
    *(b"fal_key", b"fal_jwt_token", b"fal_key[]", b"fal-key", b"FAL_KEYS", b"xfal_key", b"fal_keyx"),
)
WEBHOOK = b"https://app.example.com/hook?user=42&x=a b;c"
VALUES = (
    *(b"", b"0", b"1", b"100%25+real", b"caf%C3%A9", b"%00", b"/?:@!$'()*,", b"fal_key=1", b"a=b=c", b"?fal_key=1"),
    *(b"https%3A%2F%2Fapp.example.com%2Fhook", b"https://hooks.example.com/", b"http%3A%2F%2Fevil.example", b"a%2Bb+c"),
    *(b"".join(b"%%%02x" % byte for byte in WEBHOOK), b"%", b"%4", b"%zz", b"a;b", b"[", b"%3B", b"%252525"),
)
AROUND = (b"+", b"%20", b"%09", b"%0a", b"%2B", b"%2520", b"%00", b"%C2%A0", b"%0b", b"%1c", b"%85", b"%")
PIECES = (
    *(
        b"/",
        b"//",
        b"/./",
        b"/../",
        b"?",
        b"#",
        b"&",
        b"=",
        b";",
        b",",
        b"@",
        b":",
        b"\\",
        b"%",
        b"%25",
        b"%2f",
        b"%2E",
    ),
    *(b"/stream", b"/realtime", b"/requests/x", b"/status", b"&logs=1", b"?logs=1", b"fal_key=", b"fal_webhook=", b"+"),
    *(b"\r\n", b"\t", b" ", b"\x00", b"\x7f", b"\x85", b"\xff", b"\xe2\x84\xaa", b"https://", b"fal.run", b"queue."),
)


class Question(NamedTuple):
    """One thing to ask both."""

    raw: bytes
    method: str
    plan_methods: tuple[str, ...]


def disagreement(question: Question) -> tuple[Understood | Refused, str]:
    """Return what the rules say, and in words where the proxy says otherwise; empty words where it does not."""
    expected = judge(*question)
    try:
        target = resolve(*question)
    except Refusal as refusal:
        found = f"{refusal.error_type} {refusal.status}"
        fits = isinstance(expected, Refused) and found == f"{expected.error_type} {STATUSES[expected.error_type]}"
    except Exception as fault:
        fault.add_note(f"asked {question}")
        raise
    else:
        understood = Understood(
            *(target.host, target.path, target.query, target.kind.value),
            *(target.endpoint_id, target.request_id, target.webhook),
        )
        found = repr(understood)
        fits = understood == expected and b"https://" + target.host + target.path_and_query == question.raw
    return expected, "" if fits else f"{question}: rules {expected}, proxy {found}"


def from_corpus(random: Random) -> Question:
    """Return a row of the corpus with one to four changes; rows to be allowed come more often than their share."""
    raw = random.choice(random.choice((ALLOWED, CORPUS)))
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        raw = changed(raw, random)
    return asked(raw, random)


def from_grammar(random: Random) -> Question:
    """Return a target made by the grammar, with mistakes here and there."""
    scheme = random.choice(SCHEMES) if random.random() < 0.01 else b"https://"
    host = random.choice(HOSTS)
    known = WMA if host == b"wma.fal.run" else REST if host.startswith(b"rest.") else ()
    path = random.choice(known) if known and random.random() < 0.95 else _path(host, random)
    query = b"?" + _query(random) if random.random() < 0.5 else b""
    raw = scheme + (random.choice(WRONG_HOSTS) if random.random() < 0.02 else host) + path + query
    if random.random() < 0.02:
        raw = raw.ljust(random.randint(8190, 8194), b"x")
    return asked(changed(raw, random) if random.random() < 0.15 else raw, random)


def asked(raw: bytes, random: Random) -> Question:
    """Return the question about a target under some plan, two times of three with the method that its shape wants."""
    fitting = "PUT" if b"/cancel" in raw else "GET" if b"/requests/" in raw else "POST"
    return Question(raw, fitting if random.random() < 0.67 else random.choice(METHODS), random.choice(PLANS))


def changed(raw: bytes, random: Random) -> bytes:
    """Return a target with one change: a byte, a slice, a piece, a case, an escape."""
    start = random.randint(0, len(raw))
    end = min(len(raw), start + random.randint(1, 8))
    head, middle, tail = raw[:start], raw[start:end], raw[end:]
    new = random.choice(
        (
            *(b"", middle + middle, middle.swapcase(), escaped(middle[:1], random) + middle[1:]),
            *(random.choice(PIECES) + middle, random.choice(PIECES), middle[:1] + random.choice(PLAIN + WORDS)),
            bytes([random.choice((random.randint(0, 255), random.randint(0x21, 0x7E)))]) + middle[1:],
        )
    )
    other = random.choice(CORPUS) if random.random() < 0.05 else b""
    return head + new + (other[random.randint(0, len(other)) :] if other else tail)


def escaped(text: bytes, random: Random, depth: int = 1) -> bytes:
    """Return a text of which every byte is escaped, `depth` times over."""
    form = random.choice((b"%%%02x", b"%%%02X"))
    for level in range(depth):
        whole = level == 0 or random.random() < 0.2  # else only the percent signs of the escapes
        text = b"".join(form % byte for byte in text) if whole else text.replace(b"%", b"%25")
    return text


def _path(host: bytes, random: Random) -> bytes:
    segments = [random.choice(PLAIN) for _ in range(random.choice((1, 2, 2, 2, 3, 3, 4)))]
    if random.random() < 0.2:
        segments.insert(0, random.choice((b"workflows", b"comfy")))
    if random.random() < 0.15:
        segments.insert(random.randint(0, len(segments)), random.choice(WORDS))
    if random.random() < 0.2:
        segments.insert(random.randint(0, len(segments)), random.choice(SPECIAL))
    if random.random() < 0.25:
        segments.append(random.choice((b"stream", b"realtime")))
    if random.random() < 0.04:
        segments[1:1] = [b"a"] * random.randint(25, 31)
    path = b"/" + b"/".join(segments)
    if host == b"queue.fal.run" and random.random() < 0.6:
        return path + b"/requests/" + random.choice(IDS[:2] if random.random() < 0.6 else IDS) + random.choice(ACTIONS)
    return path + random.choice((b"", b"", b"", b"/", b"//") if random.random() < 0.5 else (b"",))


def _query(random: Random) -> bytes:
    if random.random() < 0.05:
        return random.choice((b"&", b"a&", b"a=1&")) * random.randint(98, 101)
    if random.random() < 0.03:
        return random.choice((b"", b"&", b"?", b"="))
    separator = random.choice((b";", b"&amp;", b"&&", b"?")) if random.random() < 0.05 else b"&"
    return separator.join(_parameter(random) for _ in range(random.choice((1, 1, 1, 2, 2, 3))))


def _parameter(random: Random) -> bytes:
    key = random.choice(KEYS[:5] if random.random() < 0.6 else KEYS)
    if random.random() < 0.15:
        key = key.swapcase()
    if random.random() < 0.2 and key:
        place = random.randrange(len(key))
        key = key[:place] + escaped(key[place : place + 1], random, random.choice((1, 1, 2, 3, 6))) + key[place + 1 :]
    if random.random() < 0.1:
        key = random.choice((random.choice(AROUND) + key, key + random.choice(AROUND)))
    return key if random.random() < 0.1 else key + b"=" + random.choice(VALUES)
