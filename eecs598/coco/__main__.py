import sys

from eecs598.coco import main

if __name__ == "__main__":
    sys.exit(main())
