"""JSON to rows: what a policy sees of a context and its items. Pure: no clock, no Redis, no HTTP."""
