"""An application such as Quay's web: Flask, which it can only import through the image's PYTHONPATH."""

import flask

app = flask.Flask(__name__)


@app.get("/v2/<name>/tags")
def tags(name: str) -> str:
    """Burn some CPU."""
    return str(sum(range(300_000)) + len(name))
