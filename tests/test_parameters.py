"""Parameters cells, settings files and given values are checked before anything runs."""

from __future__ import annotations

import pytest

from labkit.lab import environment, runner
from labkit.lab.execution import ChapterError
from labkit.lab.parameters import ParameterError, parse_given, read_parameters


def cells(source: str, count: int = 1) -> list[dict]:
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    return [cell] * count


@pytest.mark.parametrize(
    "source, message",
    [
        ("seeds = 2", "only lines such as 'seeds: int = 2', found 'seeds = 2'"),
        ("seeds: int", "only lines such as"),
        ("seeds: int = 1 + 1", "must be a plain value"),
        ("seeds: int = True", "the default of parameter 'seeds' must be int, found True (bool)"),
        ("seeds: array = 2", "has the type 'array'; allowed are str, int"),
        ("seeds: int = 2\nseeds: int = 3", "'seeds' is defined twice"),
        ("seeds: int = ", "not valid Python: invalid syntax (line 1)"),
    ],
)
def test_a_parameters_cell_holds_annotated_plain_values(source, message):
    with pytest.raises(ParameterError) as caught:
        read_parameters(cells(source), "notebooks/01_a.ipynb")
    assert str(caught.value).startswith("notebooks/01_a.ipynb: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_there_is_exactly_one_parameters_cell(count):
    with pytest.raises(ParameterError, match=f"found {count}"):
        read_parameters(cells("a: int = 1", count), "notebooks/01_a.ipynb")


TYPED = """n: int = 1
num_n: int = 1
lr: float = 0.1
name: str = "x"
flag: bool = False
lengths: list[int] = [1]
clip: float | None = None
cell: Literal["SRN", "LSTM"] = "LSTM"
"""


@pytest.mark.parametrize(
    "given, value",
    [
        ("n=3", 3),
        ("lr=3", 3),
        ("lr=1e-3", 0.001),
        ("name=3", "3"),
        ("flag=true", True),
        ("flag=False", False),
        ("lengths=[5, 10]", [5, 10]),
        ("clip=null", None),
        ("clip=5.0", 5.0),
        ("cell=SRN", "SRN"),
    ],
)
def test_given_values_are_read_as_declared(given, value):
    parameters = read_parameters(cells(TYPED), "notebooks/01_a.ipynb")
    found = parse_given([given], parameters, "notebooks/01_a.ipynb")
    assert found == {given.split("=")[0]: value}
    assert type(*found.values()) is type(value)


@pytest.mark.parametrize(
    "given, message",
    [
        ("n=2.0", "parameter 'n' must be int, got 2.0 (float) from --set n=2.0"),
        ("n=true", "must be int, got True (bool)"),
        ("lr=1e999", "must be float, got inf"),
        ("flag=1", "must be bool, got 1 (int)"),
        ("lengths=5", "must be list[int], got 5 (int)"),
        ("lengths=[5, '6']", "must be list[int]"),
        ("cell=GRU", "must be Literal['SRN', 'LSTM'], got 'GRU' (str)"),
        ("length=[5]", "unknown parameter 'length' from --set length=[5]; did you mean 'lengths'?"),
        ("profile=cpu", "choose the profile with --profile"),
        ("n", "--set takes name=value"),
        ("num_n=0", "parameter 'num_n' must be at least 1, got 0 from --set num_n=0"),
        ("n={[]:1}", "must be int, got '{[]:1}' (str)"),
    ],
)
def test_wrong_given_values_are_named(given, message):
    parameters = read_parameters(cells('profile: str = "quick"\n' + TYPED), "notebooks/01_a.ipynb")
    with pytest.raises(ParameterError) as caught:
        parse_given([given], parameters, "notebooks/01_a.ipynb")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "must hold one JSON object"),
        ("{", "is not valid: "),
        ('{"seeds": 1, "seeds": 2}', "the name 'seeds' is there twice"),
        ('{"rate": NaN}', "NaN is not a finite number"),
        (None, "is missing"),
        ('{"profile": "cpu"}', "set by the runner"),
    ],
)
def test_settings_files_are_checked(lab, monkeypatch, content, message):
    lab.add("01_a")
    monkeypatch.setattr(environment, "NOTEBOOKS", lab.root / "notebooks")
    monkeypatch.setattr(environment, "PROFILES", lab.root / "notebooks" / "profiles")
    settings = environment.PROFILES / "cpu" / "01_a.json"
    settings.unlink()
    if content is not None:
        settings.write_text(content)

    with pytest.raises(ChapterError) as caught:
        runner.plan("01_a", runner.Options("cpu"))
    assert message in str(caught.value)
    assert "notebooks/profiles/cpu/01_a.json" in str(caught.value)


def test_settings_come_before_defaults_and_given_values_before_both(lab, monkeypatch):
    lab.add("01_a", settings={"seeds": 4, "rate": 0.1})
    monkeypatch.setattr(environment, "NOTEBOOKS", lab.root / "notebooks")
    monkeypatch.setattr(environment, "PROFILES", lab.root / "notebooks" / "profiles")
    values = runner.plan("01_a", runner.Options("cpu", given=("seeds=5",)))
    assert values == {"profile": "cpu", "seeds": 5, "rate": 0.1}


def test_a_broken_notebook_file_is_refused(lab, monkeypatch):
    path = lab.add("01_a")
    path.write_text(path.read_text()[:40])
    monkeypatch.setattr(environment, "NOTEBOOKS", path.parent)
    with pytest.raises(ChapterError, match=r"01_a\.ipynb: not a readable notebook"):
        runner.plan("01_a", runner.Options("cpu"))
