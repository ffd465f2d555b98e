"""A crowd at a port, in a process of its own: ``python -m tests.crowd PORT IDLE TEXT...`` (texts in hex).

IDLE connections that say nothing, and one for each text, come again whenever they are let go. It writes a
line once all have been there, and on SIGTERM what was answered, in hex, an answer a line.
"""

import asyncio
import contextlib
import resource
import signal
import sys


def said(*lines: str) -> None:
    """Write lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def main(port: int, texts: list[bytes]) -> None:
    """Crowd a port until SIGTERM."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    answers: set[bytes] = set()
    opened = 0

    async def come_again(text: bytes) -> None:
        nonlocal opened
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened += 1
            if opened == len(texts):
                said("there")
            with contextlib.closing(writer), contextlib.suppress(OSError):
                writer.write(text)
                answers.add(await reader.read())
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(come_again(text)) for text in texts]
    await over.wait()
    said(*(answer.hex() for answer in answers))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    _, place, idle, *spoken = sys.argv
    asyncio.run(main(int(place), [b""] * int(idle) + [bytes.fromhex(text) for text in spoken]))
