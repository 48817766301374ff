"""From a large catalogue to the candidates of one decision. Pure: no Redis, no clock, no HTTP."""
