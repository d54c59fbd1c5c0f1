"""The command's way in; `python -m fal_proxy` is `fal-proxy`."""

import signal
import sys

if sys.argv[1:2] == ["serve"]:
    # What it imports takes a while, and a SIGHUP in that while is no reason to end: the settings are not read yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

from fal_proxy.cli import main

if __name__ == "__main__":
    main()
