"""What is put aside: taken up for the same purpose, and not for another, nor when it is damaged."""

import torch

from drawplate.learning.state import Aside


def test_it_comes_back_with_its_step(tmp_path):
    Aside(tmp_path, "a").save("z", {"x": torch.arange(3.0)}, step=7)
    kept = Aside(tmp_path, "a").load("z")
    assert kept is not None
    assert kept[1] == 7
    assert torch.equal(kept[0]["x"], torch.arange(3.0))
    assert [f.name for f in tmp_path.iterdir()] == ["z.safetensors"]


def test_not_for_another_purpose_nor_when_damaged(tmp_path):
    aside = Aside(tmp_path, "a")
    assert aside.load("z") is None
    aside.save("z", {"x": torch.arange(3.0)})
    assert Aside(tmp_path, "b").load("z") is None
    file = tmp_path / "z.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert aside.load("z") is None


def test_without_a_folder_nothing_is_kept():
    Aside(None, "a").save("z", {"x": torch.zeros(1)})
    assert Aside(None, "a").load("z") is None
