"""The checker of annotations that conftest.py hooks into every import of the package."""

from beartype import BeartypeConf, beartype

# An int serves where a float is asked for, as PEP 484 has it and as config files are written.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
