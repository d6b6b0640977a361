"""The words of `labkit.film.corpus`, under the module's former name until nobody asks for it."""

from labkit.film.corpus import (  # noqa: F401
    PAD,
    PAD_ID,
    UNKNOWN,
    UNKNOWN_ID,
    build,
    load_vectors,
    numericalize,
    tokenize,
)
