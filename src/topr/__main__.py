"""`python -m topr`."""

from topr.cli import main

if __name__ == "__main__":
    main()
