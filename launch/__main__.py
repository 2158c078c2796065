"""`python -m launch`: the command line, as torchrun's ranks run it."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.argv[0] = "olmo-ext"  # run.json tells the command, and usage its name
    main()
