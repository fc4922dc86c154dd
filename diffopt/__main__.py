"""`python -m diffopt`."""

from diffopt.cli import main

if __name__ == "__main__":
    main()
