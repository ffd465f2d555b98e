#!/usr/bin/env python3
"""An example of what may answer at FLEET_MODERATION_URL: it refuses prompts with words of a list.

    scripts/moderate_words.py --port 8200
    FLEET_MODERATION_URL=http://127.0.0.1:8200/ fleet up

Of a stored workflow it reads the parameters, because the rest of the graph is its author's. Of any other
graph it reads all texts. Pictures pass: put a classifier in the place of `judged_file`. It needs nothing but
the standard library.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = Path(__file__).resolve().parents[1] / "workflows" / "qwen_image_kids_animal" / "words.txt"
MOST_BYTES = 200 * 1024 * 1024
NEGATIVE = re.compile(r"negative|avoid", re.IGNORECASE)  # what must not be in a picture may be named


def plain(text: str) -> str:
    """Return a text without capital letters, accents, and signs that hide words."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(
        sign for sign in apart if not unicodedata.combining(sign) and unicodedata.category(sign) != "Cf"
    )


def pattern_of(file: Path) -> re.Pattern[str]:
    """Return what finds a word of a list."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    words = [plain(line) for line in lines if line and not line.startswith("#")]
    parts = [
        r"[\W_]+".join(map(re.escape, word.rstrip("*").split())) + (r"\w*" if word.endswith("*") else "")
        for word in words
    ]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(parts)})(?![^\W_])")


def texts(question: dict[str, Any]) -> Iterator[str]:
    """Yield what a client has written."""
    if question.get("workflow") and question.get("params"):
        for name, value in question["params"].items():
            if isinstance(value, str) and not NEGATIVE.search(name):
                yield value
        return
    for one in question.get("texts", ()):
        yield one["text"]


def judged_file(file: dict[str, Any]) -> str | None:
    """Return why a picture may not be; `file["data"]` are its bytes in base64."""
    return None


class Judge(BaseHTTPRequestHandler):
    """Answers one question."""

    protocol_version = "HTTP/1.1"
    words: re.Pattern[str]

    def do_POST(self) -> None:
        """Judge what is posted."""
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MOST_BYTES:
            self.send_error(413)
            return
        question = json.loads(self.rfile.read(length))
        why = None
        if question["stage"] == "prompt":
            found = next((hit for text in texts(question) if (hit := self.words.search(plain(text)))), None)
            why = None if found is None else f"the word '{found[0]}'"
        why = why or next((said for file in question["files"] if (said := judged_file(file))), None)
        answer = json.dumps({"allowed": why is None, "reason": why or ""}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the fleet's log has it."""


def main() -> None:
    """Serve until it is stopped."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--words", type=Path, default=WORDS, help="the list, one word a line")
    told.add_argument("--host", default="127.0.0.1")
    told.add_argument("--port", type=int, default=8200)
    options = told.parse_args()
    Judge.words = pattern_of(options.words)
    server = ThreadingHTTPServer((options.host, options.port), Judge)
    print(f"judges at http://{options.host}:{server.server_address[1]}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
