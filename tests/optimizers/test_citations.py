"""Every optimizer names its papers, and `cite` prints them."""

import pytest

import kopt
from kopt import optimizers
from kopt.optimizers.citations import bibliography

CLASSES = [
    cls for cls in map(vars(optimizers).get, optimizers.__all__) if isinstance(cls, type) and hasattr(cls, "cites")
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_paper_is_in_the_bibliography(cls):
    assert set(cls.cites) <= set(bibliography())
    own_papers = "https://" in (cls.__doc__ or "") and "References:" in (cls.__doc__ or "")
    assert "cites" in vars(cls) or not own_papers, f"{cls.__name__} must name its own papers"


def test_every_entry_is_used():
    assert {key for cls in CLASSES for key in cls.cites} == set(bibliography())


def test_cite_prints_papers_of_wrappers_and_of_what_is_inside(capsys):
    kopt.cite(kopt.EMA(kopt.Cautious(kopt.LAMB())))
    printed = capsys.readouterr().out
    for key in (*kopt.EMA.cites, *kopt.Cautious.cites, *kopt.LAMB.cites):
        assert printed.count(f"{{{key},") == 1
    kopt.cite(kopt.Lion)
    assert f"{{{kopt.Lion.cites[0]}," in capsys.readouterr().out


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"^cite: optimizer must be a kopt optimizer or a class of them, got 'Adam'\.$"):
        kopt.cite("Adam")
