"""kvlab side by side with what else keeps KV bytes on a disk, or finds the longest cached prefix, in one run."""
