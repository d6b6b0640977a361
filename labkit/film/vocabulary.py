"""Words to numbers: tokens of a text, the vocabulary of a corpus, pretrained word vectors.

Vocabulary and vectors come from torchtext 0.6.0, which is archived upstream. No other module
imports it, so that it can be replaced here.
"""

from __future__ import annotations

import re
import ssl
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

UNKNOWN, PAD = "<unk>", "<pad>"
UNKNOWN_ID, PAD_ID = 0, 1

_TAG = re.compile(r"<[^<>]*>")
_NEGATION = re.compile(r"n't\b")
_WORD = re.compile(r"[^\W_]+|(?<=[^\W_])'(?:s|ll|ve|re|d|m)\b")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation and HTML tags, contractions split as GloVe's are.

    "It's <br />GOOD, isn't it?" gives it 's good is n't it: the negation stays a word of its own.
    Whatever stands between < and > counts as a tag.
    """
    text = _TAG.sub(" ", text.lower().replace("\u2019", "'"))
    # a letter in place of the apostrophe keeps "n't" in one piece, then it is put back
    words = _WORD.findall(_NEGATION.sub(" n\u02bct", text))
    return [word.replace("\u02bc", "'") for word in words]


def build(texts: Iterable[Sequence[str]], size: int) -> list[str]:
    """The `size` commonest words of tokenised texts, the two special ones first.

    Words that occur equally often stand in alphabetical order. ValueError for a size below 3.
    """
    if size < 3:
        raise ValueError(f"a vocabulary has two special words and at least one other, got {size}")
    from torchtext.vocab import Vocab

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return Vocab(counts, max_size=size - 2, specials=[UNKNOWN, PAD]).itos


def numericalize(tokens: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """The number of every token, `UNKNOWN_ID` for a word that `numbers` does not hold."""
    return [numbers.get(token, UNKNOWN_ID) for token in tokens]


def load_vectors(path: Path, words: Sequence[str], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (V, D) of `words` from the first `limit` lines of a GloVe file, and which are known.

    The second result (V,) is True for words that the file has; the vectors of the others are zero.
    ValueError for a file that cannot be read as vectors.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 line, got {limit}")
    found = _read(path, limit)
    known = np.array([word in found.stoi for word in words])
    table = np.zeros((len(words), found.dim), dtype=np.float32)
    for row in np.flatnonzero(known):
        table[row] = found.vectors[found.stoi[words[row]]].numpy()
    return table, known


def _read(path: Path, limit: int):
    """torchtext's reader, without its two side effects: TLS unchecked, a pickle beside the file."""
    import torchtext.vocab

    if not path.is_file():
        raise ValueError(
            f"there is no file of word vectors {path}; python -m labkit data fetches it"
        )
    checked, bar = ssl._create_default_https_context, torchtext.vocab.tqdm
    with tempfile.TemporaryDirectory() as folder:
        try:
            torchtext.vocab.tqdm = lambda lines, total=None: lines
            return torchtext.vocab.Vectors(str(path), cache=folder, max_vectors=limit)
        except (RuntimeError, ValueError, TypeError, OSError, EOFError, IndexError) as error:
            raise ValueError(f"{path} cannot be read as word vectors: {error}") from error
        finally:
            ssl._create_default_https_context, torchtext.vocab.tqdm = checked, bar
