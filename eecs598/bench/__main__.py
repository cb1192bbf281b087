import sys

from eecs598.bench import main

if __name__ == "__main__":
    sys.exit(main())
