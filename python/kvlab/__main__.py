"""`python -m kvlab` is the `kvlab` command."""

from kvlab.cli import main

if __name__ == "__main__":
    main()
