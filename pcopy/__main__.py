"""``python -m pcopy``."""

from pcopy.cli import main

if __name__ == "__main__":
    main()
