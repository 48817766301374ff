"""The routes behind FastAPI's router: one file a resource."""
