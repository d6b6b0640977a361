"""Figures: names, alternative texts, stable bytes and digests of what is plotted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from labkit.lab import environment
from labkit.measure import plots as figures


def png_chunks(png: bytes) -> dict[str, list[bytes]]:
    chunks: dict[str, list[bytes]] = {}
    position = 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind = png[position + 4 : position + 8].decode()
        chunks.setdefault(kind, []).append(png[position + 8 : position + 8 + length])
        position += length + 12
    return chunks


def png_texts(png: bytes) -> dict[str, str]:
    chunks = png_chunks(png)
    texts = [chunk.split(b"\0", 1) for chunk in chunks.get("tEXt", [])]
    found = {key.decode(): value.decode("latin-1") for key, value in texts}
    for chunk in chunks.get("iTXt", []):
        key, rest = chunk.split(b"\0", 1)
        compressed, _, rest = rest[0], rest[1], rest[2:]
        text = rest.split(b"\0", 2)[2]
        found[key.decode()] = (zlib.decompress(text) if compressed else text).decode()
    return found


def one_line(values, name="line", alt="A line."):
    fig, ax = figures.new_figure(name, alt)
    ax.plot(values)
    return fig


def test_name_and_alternative_text_are_kept_in_the_figure_and_its_png():
    fig = one_line([1, 2], alt="Rises from\n  one to two.")
    assert (fig.labkit_name, fig.labkit_alt) == ("line", "Rises from one to two.")
    texts = png_texts(figures.png_bytes(fig))
    assert texts == {"Title": "line", "Description": "Rises from one to two."}


@pytest.mark.parametrize("name", ["", "Speed", "../speed", "a b", "1st"])
def test_a_name_that_is_no_file_stem_is_refused(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and underscores"):
        figures.new_figure(name, "text")


def test_an_empty_alternative_text_is_refused():
    with pytest.raises(ValueError, match="'plot' needs an alternative text"):
        figures.new_figure("plot", "  ")


def test_bytes_depend_on_the_data_alone():
    assert figures.png_bytes(one_line([1, 2, 3])) == figures.png_bytes(one_line([1, 2, 3]))
    assert figures.png_bytes(one_line([1, 2, 3])) != figures.png_bytes(one_line([1, 2, 4]))


RC = """
import hashlib
from labkit.measure import plots as figures
fig, ax = figures.new_figure("line", "A line.")
ax.plot([1, 2])
ax.set_title("title")
print(hashlib.sha256(figures.png_bytes(fig)).hexdigest())
"""


def test_the_readers_own_matplotlib_settings_change_nothing(tmp_path):
    (tmp_path / "matplotlibrc").write_text("savefig.bbox: tight\nfont.size: 14\n")
    inherited = {name: value for name, value in os.environ.items() if name != "MATPLOTLIBRC"}
    digests = []
    for configured in ({}, {"MPLCONFIGDIR": str(tmp_path)}):
        variables = inherited | environment.kernel_environment() | configured
        done = subprocess.run(
            [sys.executable, "-c", RC], env=variables, capture_output=True, text=True, check=True
        )
        digests.append(done.stdout)
        assert done.stderr == ""
    assert digests[0] == digests[1]


def artists(ax, kind, value):
    data = np.array([[1.0, 2.0], [3.0, value]])
    if kind == "line":
        ax.plot(data[0], data[1])
    elif kind == "scatter":
        ax.scatter(data[0], data[1])
    elif kind == "band":
        ax.fill_between([0, 1], data[0], data[1])
    elif kind == "segments":
        ax.hlines(data[1], 0, 1)
    elif kind == "bars":
        ax.bar([0, 1], data[1])
    elif kind == "image":
        ax.imshow(data)
    elif kind == "mesh":
        ax.pcolormesh(data)


KINDS = ["line", "scatter", "band", "segments", "bars", "image", "mesh"]


@pytest.mark.parametrize("kind", KINDS)
def test_digest_follows_the_data_to_six_digits(kind):
    def digest(value):
        fig, ax = figures.new_figure("plot", "text")
        artists(ax, kind, value)
        return figures.data_digest(fig)

    assert digest(4.0) == digest(4.0 + 1e-9)
    assert digest(4.0) != digest(4.001)


def test_digest_takes_missing_values_and_ignores_looks():
    fig = one_line([1.0, np.nan, 3.0])
    digest = figures.data_digest(fig)
    fig.axes[0].set_title("another title")
    fig.axes[0].lines[0].set_color("red")
    assert figures.data_digest(fig) == digest
    assert figures.data_digest(one_line([-0.0])) == figures.data_digest(one_line([0.0]))


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    return shown


def test_show_displays_the_alternative_text_and_prints_one_line(displayed, capsys):
    fig = one_line([1, 2])
    figures.show(fig)
    (image,) = displayed
    data, metadata = image._repr_png_()
    assert data
    assert metadata["alt"] == "A line."
    digest = figures.data_digest(fig)[:12]
    assert capsys.readouterr().out == f"line: A line. (data digest {digest})\n"


def test_source_and_tables_are_shown_as_markdown(displayed):
    figures.show_source(figures.data_digest)
    figures.show_table(["a", "b"], [[1, 2.5]])
    source, table = (markdown.data for markdown in displayed)
    assert source.startswith("`labkit/measure/plots.py`, `data_digest`")
    assert "def data_digest(fig: Figure) -> str:" in source
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"
