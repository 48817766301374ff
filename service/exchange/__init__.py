"""Logs as files: Parquet, DSJSON, and the layout of the Open Bandit Pipeline. Knows no Redis."""
