"""``python -m rewriter``."""

from rewriter.cli import main

if __name__ == "__main__":
    main()
