"""`python -m fal_proxy` is `fal-proxy`."""

from fal_proxy.cli import main

main()
