"""Run the server process: `python -m keynet_server HOST PORT [TRACKING_URL]`; `keynet up` does."""

from __future__ import annotations

import sys

from keynet_core import KeynetError
from keynet_server._serve import main

try:
    main(sys.argv[1:])
except (KeynetError, OSError) as error:
    from keynet_server._output import report

    sys.exit(report(error, as_json=False))
