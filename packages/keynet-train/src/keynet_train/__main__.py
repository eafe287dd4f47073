"""The command `keynet-train`, also as `python -m keynet_train`."""

from __future__ import annotations

from keynet_train._cli import main

main()
