"""The HTTP face of the server: OpenAI's endpoints over the engine.

`create_app` makes the application; `docs/serving.md` says what it answers.
"""

from kvlab.serve.api.app import Api, create_app

__all__ = ["Api", "create_app"]
