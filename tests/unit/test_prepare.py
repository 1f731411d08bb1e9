"""What prepare does to the folders around it: nothing; and what its flags do."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from max_mistral.errors import UserError
from max_mistral.fields import MOST_POSITIONS
from max_mistral.prepare import atomic, prepare
from max_mistral.prepare.atomic import new_folder
from max_mistral.prepare.command_line import main
from tests.unit.test_embeddings import write_recipe
from tests.unit.test_gguf import write_gguf
from tests.unit.test_native import write_consolidated
from workbench.checkpoints import BASE, write_native

# Of prepare, at random moments.
KILLS = int(os.environ.get("MAX_MISTRAL_KILLS", "100"))
FILES = {"config.json", "tokenizer.json", "tokenizer_config.json"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_source_named_partial_is_not_touched(tmp_path):
    source = write_native(tmp_path / "model.partial", BASE)
    before = contents(source)
    prepare(source, tmp_path / "model")
    assert contents(source) == before


def test_a_source_in_a_folder_named_partial_is_not_touched(tmp_path):
    (tmp_path / "dl.partial").mkdir()
    source = write_gguf(tmp_path / "dl.partial" / "m.gguf")
    before = source.read_bytes()
    prepare(source, tmp_path / "dl")
    assert source.read_bytes() == before


def test_a_failure_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    source = write_gguf(tmp_path / "m.gguf", architecture="gemma")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="'gemma'"):
        prepare(source, tmp_path / "a" / "b" / "out")
    with pytest.raises(UserError, match="'gemma'"):
        prepare(source, tmp_path / "out")
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "out.partial"}


def test_only_the_new_folder_is_left(tmp_path):
    (tmp_path / "src").mkdir()
    prepare(write_gguf(tmp_path / "src" / "m.gguf"), tmp_path / "new" / "out")
    assert set(contents(tmp_path / "new")) == {f"out/{name}" for name in FILES}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    # Others may read it, as any folder that is made without mkdtemp.
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "out").stat().st_mode == (
        (tmp_path / "plain").stat().st_mode
    )


def test_a_destination_inside_the_source(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    before = contents(source)
    prepare(source, source / "out")
    after = contents(source)
    assert {n: b for n, b in after.items() if not n.startswith("out/")} == before
    assert (source / "out" / "model.safetensors").is_symlink()


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to nowhere"])
def test_what_exists_is_never_replaced(tmp_path, kind):
    source = write_gguf(tmp_path / "m.gguf")
    destination = tmp_path / "out"
    if kind == "file":
        destination.write_text("mine")
    elif kind == "link to nowhere":
        destination.symlink_to(tmp_path / "nowhere")
    else:
        destination.mkdir()
    if kind == "folder":
        (destination / "mine").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        prepare(source, destination)
    assert contents(tmp_path) == before
    assert destination.is_symlink() == (kind == "link to nowhere")


def test_what_comes_to_exist_meanwhile_is_not_replaced(tmp_path):
    def make_both():
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(UserError, match="exists already"):
        make_both()
    assert contents(tmp_path) == {"out/mine": b"mine"}


def test_of_many_at_once_one_succeeds_and_is_whole(tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    for round_ in range(10):
        destination = tmp_path / f"out{round_}"
        start = threading.Barrier(4)
        results = []

        def run(destination=destination, start=start, results=results):
            start.wait()
            try:
                prepare(source, destination)
                results.append("made")
            except UserError as error:
                results.append(str(error))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count("made") == 1
        assert sum("exists already" in result for result in results) == 3
        assert set(contents(destination)) == FILES
    assert not list(tmp_path.glob(".prepare-*"))


def test_a_kill_leaves_no_half_of_a_folder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from max_mistral.prepare.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('{}'); print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    # MAX sets variables behind Python's back, which another Python trips over.
    env = dict(os.environ)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    # What is left is not in the way.
    prepare(write_gguf(tmp_path / "m.gguf"), tmp_path / "out")
    assert set(contents(tmp_path / "out")) == FILES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_whole_folder_or_none(tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    prepare(source, tmp_path / "whole")
    want, rng, whole = contents(tmp_path / "whole"), random.Random(0), 0
    longest = 0.02
    for i in range(KILLS):
        destination = tmp_path / f"out{i}"
        child = os.fork()
        if child == 0:
            prepare(source, destination)
            os._exit(0)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if destination.exists():
            assert contents(destination) == want
            whole += 1
        # So that some have time enough and some not, however busy the machine is.
        longest *= 0.8 if destination.exists() else 1.25
    # Kills before it was there, and after.
    assert 0 < whole < KILLS


def run_main(monkeypatch, capsys, *arguments):
    """The exit status and what is printed."""
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as exit_:
        status = exit_.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "_sync_all", full)
    source = write_gguf(tmp_path / "m.gguf")
    status, _, err = run_main(monkeypatch, capsys, source, tmp_path / "out")
    assert status == 1
    assert err.startswith("Error: ")
    assert err.endswith("No space left on device.\n")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_an_error_without_a_file_is_one_line(tmp_path, monkeypatch, capsys):
    def full(path):
        # As NumPy's tofile says it.
        raise OSError("1000 requested and 0 written")

    monkeypatch.setattr(atomic, "_sync_all", full)
    source = write_gguf(tmp_path / "m.gguf")
    status, _, err = run_main(monkeypatch, capsys, source, tmp_path / "out")
    assert (status, err) == (1, "Error: 1000 requested and 0 written.\n")


def test_a_suffix_that_max_does_not_know(tmp_path):
    source = write_gguf(tmp_path / "m.gguf").rename(tmp_path / "m.GGUF")
    with pytest.raises(UserError, match=r"m\.GGUF does not end in \.gguf, in small"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.GGUF"]


def test_a_parent_that_is_a_file_is_one_line(tmp_path, monkeypatch, capsys):
    source = write_gguf(tmp_path / "m.gguf")
    status, _, err = run_main(monkeypatch, capsys, source, source / "out")
    assert (status, err.count("\n")) == (1, 1)
    assert source.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch, capsys):
    source = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "ro").mkdir(mode=0o500)
    status, _, err = run_main(monkeypatch, capsys, source, tmp_path / "ro" / "out")
    assert (status, err.count("\n")) == (1, 1)
    assert "Permission denied" in err


def test_a_name_that_is_too_long_is_one_line(tmp_path, monkeypatch, capsys):
    source = write_gguf(tmp_path / "m.gguf")
    status, _, err = run_main(monkeypatch, capsys, source, tmp_path / ("x" * 300))
    assert (status, err.count("\n")) == (1, 1)
    assert "File name too long" in err


def test_a_loop_of_links_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    source = write_native(tmp_path / "src", BASE)
    for path in (tmp_path / "loop", tmp_path / "loop" / "m.gguf"):
        status, _, err = run_main(monkeypatch, capsys, path, tmp_path / "out")
        assert (status, err.count("\n")) == (1, 1)
    (source / "consolidated.safetensors").unlink()
    (source / "consolidated.safetensors").symlink_to("consolidated.safetensors")
    status, _, err = run_main(monkeypatch, capsys, source, tmp_path / "out")
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "write",
    [lambda path: write_native(path, BASE), write_consolidated, write_gguf],
    ids=["native", "huggingface", "gguf"],
)
def test_the_user_knows_the_context_better(tmp_path, monkeypatch, capsys, write):
    source = write(tmp_path / "src.gguf")

    def run(context):
        flags = "--max-position-embeddings", context
        return run_main(monkeypatch, capsys, source, tmp_path / f"{context}", *flags)

    for context in (77, MOST_POSITIONS):
        assert run(context)[0] == 0
        config = json.loads((tmp_path / f"{context}" / "config.json").read_text())
        assert config["max_position_embeddings"] == context
    for context in (0, MOST_POSITIONS + 1):
        status, _, err = run(context)
        assert status == 1
        assert f"max_position_embeddings is {context};" in err


def test_the_printed_flags_are_quoted(tmp_path, monkeypatch, capsys):
    (tmp_path / "a b").mkdir()
    source = write_gguf(tmp_path / "a b" / "m's.gguf")
    destination = tmp_path / "o;ut"
    status, out, _ = run_main(monkeypatch, capsys, source, destination)
    assert status == 0
    assert shlex.split(out.splitlines()[-1]) == [
        *("max", "generate", "--custom-architectures", "max_mistral"),
        *("--model", str(destination), "--weight-path", str(source)),
        *("--devices", "cpu", "--prompt", "Hello"),
    ]


@pytest.mark.parametrize(
    ("dtype", "named"), [("bfloat16", False), ("float32", False), ("float16", True)]
)
def test_what_starts_a_folder(tmp_path, monkeypatch, capsys, dtype, named):
    source = write_native(tmp_path / "src", BASE, dtype=dtype, shards=2)
    destination = tmp_path / "out"
    status, out, _ = run_main(monkeypatch, capsys, source, destination)
    assert status == 0
    shards = sorted(destination.glob("model-*.safetensors")) if named else []
    assert shlex.split(out.splitlines()[-1]) == [
        *("max", "generate", "--custom-architectures", "max_mistral"),
        *("--model", str(destination)),
        *(part for path in shards for part in ("--weight-path", str(path))),
        *("--devices", "cpu", "--quantization-encoding", "float32"),
        *("--prompt", "Hello"),
    ]
    assert len(shards) == 2 * named


def test_what_starts_a_model_that_embeds(tmp_path, monkeypatch, capsys):
    source = write_native(tmp_path / "src", BASE)
    (source / "modules.json").write_text("[]")
    status, out, _ = run_main(monkeypatch, capsys, source, tmp_path / "out")
    command = shlex.split(out.splitlines()[-1])
    assert (status, command[:2]) == (0, ["max", "serve"])
    assert command[-2:] == ["--task", "embeddings_generation"]


def test_the_printed_path_of_a_link_keeps_its_suffix(tmp_path, monkeypatch, capsys):
    """As in the Hub's cache."""
    blob = write_gguf(tmp_path / "m.gguf").rename(tmp_path / "0123abcd")
    (tmp_path / "m.gguf").symlink_to(blob)
    monkeypatch.chdir(tmp_path)
    status, out, _ = run_main(monkeypatch, capsys, "m.gguf", tmp_path / "out")
    assert status == 0
    command = shlex.split(out.splitlines()[-1])
    assert command[command.index("--weight-path") + 1] == str(tmp_path / "m.gguf")


def test_what_a_group_may_write_to_is_copied_without_that(tmp_path):
    source = write_native(tmp_path / "src", BASE)
    file = source / "tekken.json"
    file.chmod(0o664)
    # The Hub's cache has links.
    (tmp_path / "blob").write_bytes((source / "params.json").read_bytes())
    (source / "generation_config.json").symlink_to(tmp_path / "blob")
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "tekken.json").read_bytes() == file.read_bytes()
    made = (tmp_path / "out" / "config.json").stat().st_mode
    for name in ("tekken.json", "generation_config.json"):
        copied = tmp_path / "out" / name
        assert not copied.is_symlink()
        assert copied.stat().st_mode == made


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
    ],
)
def test_a_device_is_not_copied(tmp_path, monkeypatch, name):
    """It would fill the disk."""
    source = write_recipe(write_native(tmp_path / "src", BASE))
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("/dev/zero")
    copies = Mock()
    monkeypatch.setattr("shutil.copyfile", copies)
    prepare(source, tmp_path / "out")
    copied = [call.args[0] for call in copies.call_args_list]
    assert source / "tekken.json" in copied
    assert source / name not in copied
