"""`kvlab codec-bench`: what a codec of L3 saves, and what it does to a model."""
