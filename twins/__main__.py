"""`python -m twins`, which is what torchrun starts."""

from .cli import main

if __name__ == "__main__":
    main()
