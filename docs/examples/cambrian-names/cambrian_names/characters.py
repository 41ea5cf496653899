"""The names of characters: a text each, as a data set of kind "text" has them."""

import sys
import unicodedata

_names = (unicodedata.name(chr(code), "") for code in range(sys.maxunicode + 1))
names = {name: name for name in _names if name and "-" not in name}  # no numbers: CJK, Linear A
