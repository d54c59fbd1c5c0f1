"""WebSockets as bytes: `frames` reads and builds them apart from I/O, `end` is one side of an open socket."""
