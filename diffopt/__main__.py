"""`python -m diffopt`."""

from diffopt.cli.main import main

if __name__ == "__main__":
    main()
