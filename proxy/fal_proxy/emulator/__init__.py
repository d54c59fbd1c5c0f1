"""An offline fal: queue, runs, streams, realtime, storage and files, so that apps can be built without spending money.

Knows nothing of the proxy, so that a misunderstanding of fal cannot cancel itself out. Start it with uvicorn,
`http=EmulatorProtocol` and `ws=EmulatorSocket`; faults that cut connections need those.
"""

from .app import Emulator, create_emulator
from .faults import Fault, parse_faults
from .journal import Delivery, Entry, Session
from .protocol import EmulatorProtocol, EmulatorSocket

__all__ = [
    "Delivery",
    "Emulator",
    "EmulatorProtocol",
    "EmulatorSocket",
    "Entry",
    "Fault",
    "Session",
    "create_emulator",
    "parse_faults",
]
