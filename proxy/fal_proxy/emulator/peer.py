"""The far end of a WebRTC session, as far as signalling shows it: ICE servers, and an answer to an offer. No media."""

from .exchange import Json
from .world import World

_TURNED = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
_KEPT = ("a=mid:", "a=rtpmap:", "a=fmtp:", "a=rtcp-fb:", "a=rtcp-mux", "a=sctp-port:", "a=max-message-size:")


def ice_servers(world: World) -> list[Json]:
    """Return STUN and TURN servers on loopback, with credentials for one session."""
    return [
        {"urls": ["stun:127.0.0.1:3478"]},
        {
            "urls": ["turn:127.0.0.1:3478?transport=udp"],
            "username": f"{world.rng.getrandbits(48):012x}",
            "credential": f"{world.rng.getrandbits(96):024x}",
        },
    ]


def answer_sdp(world: World, offer: str) -> str:
    """Answer an SDP offer section by section (RFC 3264), with credentials of a peer that is never reached."""
    session, *sections = offer.replace("\r\n", "\n").strip().split("\nm=")
    # An offered bundle is accepted whole: there is one transport, which nobody will use.
    bundle = [line for line in session.split("\n") if line.startswith("a=group:BUNDLE")]
    lines = ["v=0", f"o=- {world.rng.getrandbits(62)} 1 IN IP4 127.0.0.1", "s=-", "t=0 0", *bundle]
    transport = [
        f"a=ice-ufrag:{world.rng.getrandbits(32):08x}",
        f"a=ice-pwd:{world.rng.getrandbits(96):024x}",
        "a=fingerprint:sha-256 " + ":".join(f"{byte:02X}" for byte in world.rng.randbytes(32)),
        "a=setup:active",
    ]
    for section in sections:
        media, *attributes = section.split("\n")
        lines += [f"m={media}", "c=IN IP4 0.0.0.0", *transport]
        lines += [line for line in attributes if line.startswith(_KEPT)]
        lines += [f"a={_TURNED[line[2:]]}" for line in attributes if line.startswith("a=") and line[2:] in _TURNED]
    return "\r\n".join([*lines, ""])
