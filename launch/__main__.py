"""`python -m launch`: the command line, where the `olmo-ext` program is not on the PATH."""

from launch.cli import main

if __name__ == "__main__":
    main()
