"""Texts from nodes, shortened for records and lists."""


def clean(text: str) -> str:
    """Return a text that every encoder accepts: lone surrogates become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def clip(text: str, most: int) -> str:
    """Return at most this many characters of a text, cleaned; an ellipsis shows that it was cut."""
    return clean(text if len(text) <= most else f"{text[: most - 1]}…")
