"""python -m cambrian"""

from cambrian.cli import main

if __name__ == "__main__":
    main()
