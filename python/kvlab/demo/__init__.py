"""The demonstration: one agent prompt, cold, evicted to disk, restored in a new process."""
