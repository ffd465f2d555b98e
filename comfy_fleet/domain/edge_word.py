"""What the edge shows to the API with each request, so that nobody else passes for it.

The API believes its edge who asks, if an operator's proxy has said it. Other programs can reach the API's own
port, too.
"""

import hashlib
import hmac

HEADER = "x-fleet-edge"


def edge_word(ticket_key: bytes) -> str:
    """Return it.

    Args:
        ticket_key: The key of editor tickets, which both have.
    """
    return hmac.new(ticket_key, b"the edge speaks", hashlib.sha256).hexdigest()
