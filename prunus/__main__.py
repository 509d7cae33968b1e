"""``python -m prunus``: the command line."""

from prunus.cli import main

if __name__ == "__main__":
    main()
