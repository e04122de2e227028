"""Where stock clients in the pod send: OTLP over HTTP and Pyroscope pushes, on loopback, without credentials.

In the order of reading: `server` reads a request within `limits` (`body`), `gateway` sends it to its reader:
`otlp` (with `otlp_json`), `push` or `ingest`. These check it to its leaves (`schema`), add the pod's labels,
and give back one protobuf message, which the uplink holds before the client is answered. What is refused is
in `errors`, and counted.
"""

from quayscope.sidecar.gateway.gateway import OTLP_LISTEN, PUSH_LISTEN, Gateway, GatewayOptions, Hold

__all__ = ["OTLP_LISTEN", "PUSH_LISTEN", "Gateway", "GatewayOptions", "Hold"]
