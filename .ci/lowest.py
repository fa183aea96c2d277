"""The oldest releases that settings.ini allows, one a line, as pip takes them:
python .ci/lowest.py [NAME...]
With names, only those. Needs Python alone."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lowest(names: list = ()) -> list:
    "`name==version` for the requirements of the package, each at its lower bound"
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    pins = []
    for requirement in parser["DEFAULT"]["requirements"].split():
        name, bound = re.match(r"([\w.-]+)(?:.*>=([\w.]+))?", requirement).groups()
        if bound is None:
            sys.exit(f"settings.ini: {requirement} has no lower bound")
        if not names or name in names:
            pins.append(f"{name}=={bound}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
