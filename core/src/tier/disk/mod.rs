//! L3: segment files, a directory in memory, and its sled copy.
