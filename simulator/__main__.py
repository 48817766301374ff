"""`python -m simulator` is `rebound-sim`."""

from simulator.cli import app

if __name__ == "__main__":
    app()
