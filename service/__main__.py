"""`python -m service` is the command `rebound`."""

from service.cli import app

app(prog_name="rebound")
