import pytest

from layerlock_hf.utils.packages import PackageUnusable, importing


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that makes a package of this code."""
    monkeypatch.syspath_prepend(tmp_path)
    return (tmp_path / "toybox_of_tests.py").write_text


def load_toybox():
    with importing("toybox_of_tests", "toys", "play"):
        import toybox_of_tests  # noqa: F401


def test_what_is_missing_is_installed_by_its_extra():
    with pytest.raises(PackageUnusable) as caught:
        load_toybox()
    assert (
        str(caught.value) == 'toybox_of_tests must be installed for toys, got none: pip install "layerlock_hf[play]"'
    )
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import a_module_that_is_missing", "ModuleNotFoundError: No module named 'a_module_that_is_missing'"),
        ("from os import no_such_name", "ImportError: cannot import name 'no_such_name' from 'os'"),
        ("raise RuntimeError('built for\\n another NumPy')", "RuntimeError: built for another NumPy"),
    ],
)
def test_what_is_broken_is_installed_again(package, code, told):
    package(code)
    with pytest.raises(PackageUnusable) as caught:
        load_toybox()
    assert str(caught.value).startswith(
        f"toybox_of_tests must be installed for toys, got one that cannot be imported ({told}"
    )
    assert str(caught.value).endswith("): pip install --force-reinstall toybox_of_tests")
