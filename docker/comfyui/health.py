"""Ask this container's ComfyUI what HAProxy asks it: ``GET /system_stats``. Standard library only."""

import http.client
import os
import sys

TIMEOUT_S = 8.0  # the container's engine waits 10 s


def main() -> int:
    """Return 0 if ComfyUI answers 200, else say why not and return 1."""
    host = os.environ.get("COMFYUI_LISTEN", "127.0.0.1").split(",")[0]
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - asked, not bound
        host = "::1" if host == "::" else "127.0.0.1"
    port = int(os.environ.get("COMFYUI_PORT", "8188"))
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/system_stats")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"nothing answers at {host}:{port}: {error}\n")
        return 1
    finally:
        connection.close()
    if status != 200:
        sys.stderr.write(f"{host}:{port} answered {status}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
