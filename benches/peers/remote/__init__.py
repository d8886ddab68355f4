"""The remote tier beside what else brings a prefix from a server or a folder into an engine's layers, in one run."""
