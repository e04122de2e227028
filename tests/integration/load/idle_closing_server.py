"""An HTTP server that hangs up 30 ms after each answer, as servers with a short keep-alive do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests without a body until the client is silent for 30 ms."""
    try:
        while True:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.03)
            writer.write(ANSWER)
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    """Listen and write the port to the file named."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    ready = Path(sys.argv[1])
    partial = ready.with_suffix(".partial")
    partial.write_text(str(server.sockets[0].getsockname()[1]))
    partial.rename(ready)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
