//! L2: runs in host memory, in one arena of 64 KiB pages.
