"""``python -m qtool``: the same program as the console script."""

from qtool.cli.main import main

if __name__ == "__main__":
    main()
