"""`python -m atu`: the `atu` command."""

from .cli.main import main

if __name__ == "__main__":
    main()
