"""`python -m ops.cli`: how a launcher starts the ranks."""

from ops.cli.main import main

if __name__ == "__main__":
    main()
