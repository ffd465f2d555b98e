"""A crowd at a port, in a process of its own: ``python -m tests.crowd PORT IDLE TEXT...`` (texts in hex).

IDLE connections that say nothing, and one for each text, come again whenever they are let go. It writes a line
once all have been there, and on SIGTERM what was answered, in hex, an answer a line.
"""

import asyncio
import contextlib
import resource
import signal
import sys


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
                print("there", flush=True)
            with contextlib.closing(writer), contextlib.suppress(OSError):
                writer.write(text)
                answers.add(await reader.read())
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(come_again(text)) for text in texts]
    await over.wait()
    print(*(answer.hex() for answer in answers), sep="\n", flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [b""] * int(sys.argv[2]) + [bytes.fromhex(one) for one in sys.argv[3:]]))
