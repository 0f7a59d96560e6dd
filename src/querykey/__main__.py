"""`python -m querykey` is `querykey`."""

from querykey.cli.main import main

if __name__ == "__main__":
    main()
