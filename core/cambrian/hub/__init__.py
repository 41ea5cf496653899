"""hf://owner/repo@revision <-> a local folder, verified.

The client (huggingface_hub) gives the session, the token, the locks and the layout of the cache.
What it leaves out is here: every file is hashed before it is used, a download goes on where an
earlier one was cut off, and a start with a pinned revision asks nobody.
"""

from cambrian.hub.location import Location, parse_uri
from cambrian.hub.lock import LOCK, Lock, Pin, alone
from cambrian.hub.snapshot import Plan, Snapshot, Wish, fetch, pin, plan, weights_header
from cambrian.hub.transfer import Report

__all__ = [
    "LOCK",
    "Location",
    "Lock",
    "Pin",
    "Plan",
    "Report",
    "Snapshot",
    "Wish",
    "alone",
    "fetch",
    "parse_uri",
    "pin",
    "plan",
    "weights_header",
]
