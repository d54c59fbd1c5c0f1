"""An offline fal: queue, runs, streams, storage and files over HTTP, so that apps can be built without spending money.

Knows nothing of the proxy, so that a misunderstanding of fal cannot cancel itself out. Start it with uvicorn and
`http=EmulatorProtocol`; faults that cut connections need that.
"""

from .app import Emulator, create_emulator
from .faults import Fault, parse_faults
from .journal import Entry
from .protocol import EmulatorProtocol

__all__ = ["Emulator", "EmulatorProtocol", "Entry", "Fault", "create_emulator", "parse_faults"]
