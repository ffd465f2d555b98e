"""Texts of nodes, cut to what records and lists can carry."""


def clean(text: str) -> str:
    """Return a text that every encoder takes: halves of characters become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def clip(text: str, most: int) -> str:
    """Return at most so many characters of a text, clean; an ellipsis says that there were more."""
    return clean(text if len(text) <= most else f"{text[: most - 1]}…")
