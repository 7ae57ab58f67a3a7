"""What each command says: tables for people, one document for programs, four lines for mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from drawplate import cli
from drawplate.errors import DrawplateError
from tests.cli.conftest import Run

COMMANDS = ["compile", "plan", "inspect", "eval", "explain", "bench", "calibrate-device", "run", "plugins", "recipes"]
COMMANDS += ["replay"]


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """stdout, which is one JSON document and nothing else."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['drawplate', '--help']\n"
        "from drawplate.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'networkx', 'executorch', 'drawplate.program'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    assert all(f"  {c} " in done.stdout for c in COMMANDS)


def test_every_command_and_option_is_explained() -> None:
    group = typer.main.get_command(cli.app)
    commands = {**group.commands}  # type: ignore[attr-defined]
    commands |= {f"recipes {n}": c for n, c in commands.pop("recipes").commands.items()}
    assert sorted({name.split()[0] for name in commands}) == sorted(COMMANDS)
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"  # type: ignore[attr-defined]
        assert any(p.name == "as_json" for p in command.params), f"{name} has no --json"


def test_version(drawplate: Run) -> None:
    assert drawplate("--version").stdout.startswith("drawplate 0.")


def test_plugins(drawplate: Run) -> None:
    found = document(drawplate("plugins", "--json"))
    assert found["problems"] == []
    (builtin,) = found["plugins"]
    assert builtin["distribution"] == "drawplate"
    assert "quantize-weights" in builtin["pass"]
    shown = drawplate("plugins").stdout
    assert "quantize-weights" in shown


def test_a_pass_s_options_can_be_listed(drawplate: Run) -> None:
    found = document(drawplate("plugins", "quantize-weights", "--json"))
    options = {o["name"]: o for o in found["options"]}
    assert options["bits"] == {"name": "bits", "takes": "a whole number", "default": "4"}
    assert options["block"]["default"] == "1x32"
    assert options["where"]["takes"] == "one of body, head, all"
    assert 'where: "body"' in found["about"]
    assert "must be given" in drawplate("plugins", "allocate-bits").stdout
    wrong = drawplate("plugins", "quantise-weights")
    assert wrong.returncode == 1
    assert "no pass or backend is called 'quantise-weights'" in wrong.stderr
    assert "did you mean 'quantize-weights'?" in wrong.stderr


def test_a_broken_plugin_is_told_and_the_exit_code_says_so(
    drawplate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "path" / "broken-3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[drawplate]\nbroken = not_a_module\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("DRAWPLATE_PLUGINS", "broken")
    done = drawplate("plugins")
    assert done.returncode == 1
    assert "plugin broken (broken 3.1) could not be imported" in done.stdout
    assert "quantize-weights" in done.stdout
    assert done.stderr == ""


def test_recipes(drawplate: Run) -> None:
    names = {r["name"] for r in document(drawplate("recipes", "list", "--json"))}
    assert {"fp32", "bf16", "8da8w", "meta-8da4w"} <= names
    shown = drawplate("recipes", "show", "quantize-weights{bits=3}").stdout
    assert shown == 'passes = [\n    { name = "quantize-weights", bits = 3 },\n]\n'


def test_inspect(drawplate: Run, model: Path) -> None:
    found = document(drawplate("inspect", model, "--json"))
    assert found["context"] == 128
    assert found["unrecognised"] == []
    assert [s["role"] for s in found["sites"]].count("linear") == 14
    assert found["parameters"] == sum(w["bytes"] for w in found["weights"]) // 4
    shown = drawplate("inspect", model).stdout
    assert "model.layers.*.mlp.up_proj.weight" in shown
    assert "not recognised: nothing was left over" in shown


def test_inspect_prints_the_ir_and_nothing_else(drawplate: Run, model: Path) -> None:
    from drawplate.text import parse_program

    shown = drawplate("inspect", model, "--ir").stdout
    assert str(parse_program(shown)) == shown.rstrip("\n")
    raw = drawplate("inspect", model, "--ir", "--stage", "captured").stdout
    assert "aten.rsqrt" in raw
    assert "aten.rsqrt" not in shown


def test_run_continues_a_prompt(drawplate: Run, model: Path) -> None:
    found = document(drawplate("run", model, "--prompt", "the wire", "--no-chat", "-n", 4, "--json"))
    assert found["tokens"] == 4 or found["stopped"] == "end"
    shown = drawplate("run", model, "--prompt", "the wire", "--no-chat", "-n", 4)
    assert shown.stdout == found["text"] + "\n"
    assert "tokens/s" in shown.stderr


def test_run_holds_a_conversation(drawplate: Run, model: Path) -> None:
    done = drawplate("run", model, "-n", 2, stdin="the wire\n\nthe plate\n")
    assert done.returncode == 0, done.stderr
    speeds = [line for line in done.stderr.splitlines() if "prompt tokens" in line]
    assert len(speeds) == 2
    first, second = (int(line.lstrip("[").split()[0]) for line in speeds)
    assert second > first  # what was said before is in the prompt


def test_eval(drawplate: Run, model: Path, text: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "the wire is", "choices": [" drawn", " a pass"], "answer": 0}\n' * 3)
    other = tmp_path / "other"
    other.symlink_to(model)
    options = ["--text", text, "--length", 32, "--windows", 3, "--task", f"wires={task}", "--shots", 1, "--limit", 2]
    found = document(drawplate("eval", other, "--original", model, *options, "--json"))
    assert found["text"]["tiny"]["tokens"] == 3 * 31
    assert found["text"]["other"]["against"]["agreement"]["value"] == 1
    assert found["tasks"]["wires"]["other"]["against"]["difference"]["value"] == 0
    shown = drawplate("eval", model, "--text", text, "--length", 32, "--windows", 3).stdout
    assert "93 tokens of text" in shown


def test_eval_tells_a_model_from_a_recipe_of_the_same_name(
    drawplate: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    for folder in ("fp32", "other/fp32"):
        (tmp_path / "here" / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / folder).symlink_to(model)
    options = ["--text", text, "--length", 16, "--windows", 1, "--json"]
    found = document(drawplate("eval", "fp32", "other/fp32", "--recipe", "fp32", "--recipe", "cast", *options))
    assert list(found["text"]) == ["fp32", "other/fp32", "recipe fp32", "cast"]
    assert found["text"]["fp32"]["against"] is None
    assert found["text"]["recipe fp32"]["against"]["agreement"]["value"] == 1


def test_a_mistake_is_told_in_full_and_without_a_traceback(drawplate: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = drawplate("inspect", tmp_path / "empty")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "config.json" in done.stderr
    assert "  do:    " in done.stderr
    assert "Traceback" not in done.stderr
    again = drawplate("inspect", tmp_path / "empty", "--json")
    assert json.loads(again.stdout)["error"]["what"] == done.stderr.splitlines()[0]


@pytest.mark.parametrize("arguments", [["inspect", "nothing/here", "--debug"], ["--debug", "inspect", "nothing/here"]])
def test_debug_lets_the_traceback_through_wherever_it_stands(drawplate: Run, arguments: list[str]) -> None:
    with pytest.raises(DrawplateError):
        drawplate(*arguments)


def test_stdout_is_the_document_whatever_libraries_print() -> None:
    code = (
        "import os, sys\n"
        "from drawplate.commands.output import Output\n"
        "with Output(as_json=True) as out:\n"
        "    print('python chats'); os.write(1, b'C++ chats')\n"
        "    out.give({'inf': float('inf'), 'n': (1, 2)})\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"inf": "inf", "n": [1, 2]}
    assert "C++ chats" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "MODEL"], "nothing to measure\n  do:    add --text FILE, or --task piqa=FILE, or both\n"),
        (
            ["eval", "MODEL", "--task", "a/wires.jsonl", "--task", "b/wires.jsonl"],
            (
                "two tasks are called 'wires'\n"
                "  why:   results are told apart by name\n"
                "  do:    write --task NAME=FILE with a name for each\n"
            ),
        ),
        (
            ["run", "MODEL", "--json"],
            "--json needs a prompt\n  why:   a conversation is no one document\n  do:    add --prompt TEXT\n",
        ),
    ],
)
def test_mistakes_of_the_command_line(drawplate: Run, model: Path, arguments: list[str], message: str) -> None:
    done = drawplate(*[model if a == "MODEL" else a for a in arguments])
    assert done.returncode == 1
    assert done.stderr == message


def test_a_misspelled_option_is_a_usage_error(drawplate: Run) -> None:
    done = drawplate("plugins", "--jsn")
    assert done.returncode == 2
    assert "No such option: --jsn" in done.stderr


def test_an_interrupt_ends_with_130(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "drawplate.cli", "run", str(model), "--max-tokens", "1", "--no-chat"]
    pipe = subprocess.PIPE

    def interruptible() -> None:  # a shell's background jobs inherit that interrupts are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=interruptible) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("a b\n")
        child.stdin.flush()
        assert child.stdout.readline().endswith("\n")  # it has answered, and waits for the next line
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors


def test_our_own_mistakes_look_like_no_ones_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyError("x")

    monkeypatch.delenv("DRAWPLATE_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("drawplate failed: KeyError: 'x'\n  where: test_commands.py:")
    assert error.endswith("  do:    run it again with --debug and report what it prints\n")
