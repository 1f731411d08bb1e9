"""Models on the Hub, which a folder of this machine stands for."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from max_mistral.command import hub
from max_mistral.command.hub import fetch
from max_mistral.errors import UserError
from tests.commands import have_gpus
from workbench.checkpoints import BASE
from workbench.quantized import LAYOUTS

HUGGING_FACE = ["config.json", "tokenizer.json", "tokenizer_config.json"]
NATIVE = ["params.json", "tekken.json", "consolidated.safetensors"]


class Hub:
    """Repositories that are lists of names, and a cache in a folder."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.repos: dict[str, list[str]] = {}
        self.error: Exception | None = None
        self.broken: Exception | None = None
        self.asked: list[str] = []
        self.forced: list[bool] = []
        self.texts: dict[str, str] = {}

    def list_repo_files(self, repo, revision=None):
        if self.error is not None:
            raise self.error
        return self.repos[repo]

    def cached_tree(self, repo, revision=None):
        return [SimpleNamespace(path=name) for name in self.repos[repo]]

    def snapshot_download(
        self,
        repo,
        revision=None,
        allow_patterns=(),
        local_files_only=False,
        force_download=False,
    ):
        folder = self.cache / repo.replace("/", "--")
        if local_files_only:
            if not folder.exists():
                raise LocalEntryNotFoundError("no snapshot")
            if not all((folder / name).exists() for name in self.repos[repo]):
                raise IncompleteSnapshotError("files are missing", str(folder))
            return str(folder)
        if self.broken is not None:
            raise self.broken
        self.asked = list(allow_patterns)
        self.forced.append(force_download)
        for name in allow_patterns:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(self.texts.get(name, ""))
        return str(folder)


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: site)
    monkeypatch.setattr(hub, "snapshot_download", site.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_cached_repo_tree", site.cached_tree)
    return site


def refused(kind):
    request = httpx.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind("refused", response=httpx.Response(401, request=request))


def test_one_format_of_two_is_fetched(site):
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files += ["model.safetensors.index.json", "1_Pooling/config.json"]
    more = ["README.md", "onnx/model.onnx", "sub/config.json", "adapter_model.bin"]
    more += ["onnx/1_Pooling/config.json", "sub/model.safetensors"]
    site.repos["a/b"] = [*HUGGING_FACE, *files, *NATIVE, *more]
    folder = fetch("a/b")
    assert folder.is_dir()
    expected = {*HUGGING_FACE, *files, "params.json", "tekken.json"}
    assert set(site.asked) == expected


def test_mistrals_own_format(site):
    site.repos["a/b"] = NATIVE
    fetch("a/b")
    assert set(site.asked) == set(NATIVE)


@pytest.mark.parametrize("files", [HUGGING_FACE, NATIVE])
def test_all_but_the_weights_comes_first(site, files):
    site.repos["a/b"] = [*files, "model.safetensors", "1_Pooling/config.json"]
    seen = []

    def check(folder):
        found = (path for path in folder.rglob("*") if path.is_file())
        seen.extend(path.name for path in found)

    fetch("a/b", check=check)
    small = {name for name in files if not name.endswith(".safetensors")}
    assert set(seen) == small | {"config.json"}
    assert "model.safetensors" in site.asked
    # Of a GGUF file there is nothing else but its name.
    site.repos["a/gguf"] = ["b.Q8_0.gguf", "config.json"]
    site.asked.clear()
    fetch("a/gguf", check=lambda file: seen.append((file.name, *site.asked)))
    assert seen[-1] == ("b.Q8_0.gguf",)
    assert site.asked == ["b.Q8_0.gguf"]


MIXTRAL = json.dumps({"model_type": "mixtral"})
GPTQ = BASE | {"quantization_config": LAYOUTS["gptq"].config}


@pytest.mark.parametrize(
    ("files", "texts", "says"),
    [
        (HUGGING_FACE, {"config.json": MIXTRAL}, "of Mixtral"),
        (HUGGING_FACE, {"config.json": "{"}, "is not valid JSON"),
        (HUGGING_FACE, {"config.json": json.dumps(GPTQ)}, "runs on GPUs only"),
        (NATIVE, {"params.json": json.dumps({"moe": {"num_experts": 8}})}, "Mixtral"),
    ],
)
def test_no_weights_are_fetched_of_what_does_not_run(site, run, files, texts, says):
    site.repos["a/b"] = [*files, "model.safetensors"]
    if files is NATIVE:
        site.repos["a/b"] = files
    site.texts = texts
    status, found, err = run("serve", "a/b")
    assert (status, found) == (1, [])
    assert says in err
    assert "cannot be read (" not in err
    assert not [name for name in site.asked if name.endswith(".safetensors")]


def test_no_gguf_file_is_fetched_for_a_gpu(site, run, monkeypatch):
    have_gpus(monkeypatch, 1)
    site.repos["a/b"] = ["b.Q8_0.gguf"]
    status, found, err = run("serve", "a/b", "--devices", "gpu:0")
    assert (status, found, site.asked) == (2, [], [])
    assert "a GGUF file runs on the CPU alone" in err
    run("serve", "a/b")
    assert site.asked == ["b.Q8_0.gguf"]


@pytest.mark.parametrize("more", [("--devices", "gpu:0"), ("--weight-path", "x.gguf")])
def test_what_may_run_in_another_way_is_fetched(site, run, monkeypatch, more):
    """On a GPU, which has GPTQ; or in other weights, though it fails later here."""
    have_gpus(monkeypatch, 1)
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors"]
    site.texts = {"config.json": json.dumps(GPTQ)}
    run("serve", "a/b", *more)
    assert "model.safetensors" in site.asked


def test_an_encoding_of_gguf(site):
    site.repos["a/b-GGUF"] = ["b.Q8_0.gguf", "b.Q4_K_M.gguf", "README.md"]
    assert fetch("a/b-GGUF:Q8_0").name == "b.Q8_0.gguf"
    assert site.asked == ["b.Q8_0.gguf"]
    # As llama.cpp has it.
    assert fetch("a/b-GGUF").name == "b.Q4_K_M.gguf"
    with pytest.raises(UserError, match=r"has no GGUF .* in Q2_K; it has b.Q8"):
        fetch("a/b-GGUF:Q2_K")


@pytest.mark.parametrize(
    ("tag", "names", "says"),
    [
        ("", ["b.Q8_0.gguf", "b.F16.gguf"], "in Q4_K_M, which is taken where none is"),
        ("", ["b-Q4_K_M.gguf", "c-Q4_K_M.gguf"], "has 2 GGUF files whose name ends in"),
        (":Q2_K", ["b.Q8_0.gguf"], "has no GGUF file of a model whose name ends in Q2"),
    ],
)
def test_an_encoding_that_is_given_as_the_message_says(site, tag, names, says):
    site.repos["a/b"] = names
    with pytest.raises(UserError, match=says) as error:
        fetch(f"a/b{tag}")
    _, _, given = str(error.value).partition(" Give one: ")
    assert fetch(given).name == names[0]


def test_an_encoding_that_is_asked_for_counts_for_more_than_safetensors(site):
    site.repos["a/b"] = ["config.json", "model.safetensors", "b.Q4_K_M.gguf"]
    assert fetch("a/b:Q4_K_M").name == "b.Q4_K_M.gguf"
    assert site.asked == ["b.Q4_K_M.gguf"]
    fetch("a/b")
    assert site.asked == ["model.safetensors", "config.json"]


def test_a_revision_that_is_not_there(site):
    site.error = refused(RevisionNotFoundError)
    with pytest.raises(UserError, match=r"'x'\. Check --huggingface-model-revision"):
        fetch("a/b", "x")


def test_weights_of_another_revision_are_refused(site, run):
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors"]
    status, found, err = run("serve", "a/b", "--huggingface-weight-revision", "v2")
    assert (status, found, site.asked) == (2, [], [])
    assert "--huggingface-weight-revision is v2, but of a/b all files" in err
    assert "--huggingface-model-revision, which counts for the weights too" in err


@pytest.mark.parametrize("flags", [[], ["--force-download"]])
def test_what_was_fetched_before_is_fetched_anew_if_asked_for(site, run, flags):
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors"]
    folder = fetch("a/b", force=bool(flags))
    assert site.forced == [bool(flags)] * 2
    site.texts = {"config.json": MIXTRAL}
    run("serve", "a/b", *flags)
    assert site.forced[2:] == [bool(flags)]
    # What cannot be fetched anew is not taken as it is.
    site.error = OfflineModeIsEnabled("offline mode is enabled")
    assert fetch("a/b") == folder
    with pytest.raises(UserError, match="here, and the Hugging Face Hub cannot be re"):
        fetch("a/b", force=True)


def test_the_only_gguf_file(site):
    site.repos["a/b-GGUF"] = ["b[1].gguf"]
    fetch("a/b-GGUF")
    assert site.asked == ["b[[]1].gguf"]


def test_a_vision_tower_is_no_choice(site):
    site.repos["a/b-GGUF"] = ["b-Q8_0.gguf", "mmproj-F16.gguf"]
    assert fetch("a/b-GGUF").name == "b-Q8_0.gguf"


@pytest.mark.parametrize("repo", ["a/b", "a/native"])
def test_without_a_network_a_folder_that_was_fetched_counts(site, repo):
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors", *NATIVE, "README.md"]
    site.repos["a/native"] = NATIVE
    folder = fetch(repo)
    site.error = OfflineModeIsEnabled("offline mode is enabled")
    assert fetch(repo) == folder
    next(folder.glob("t*.json")).unlink()
    with pytest.raises(UserError, match=r"nor in the Hub's cache"):
        fetch(repo)


def test_of_a_cache_that_knows_no_more_all_that_is_there_counts(site):
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors", "README.md"]
    folder = fetch("a/b")
    site.error = OfflineModeIsEnabled("offline mode is enabled")
    site.repos["a/b"].remove("README.md")
    assert fetch("a/b") == folder


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Task error: File reconstruction error"), "cannot be read .Task"),
        (RuntimeError("Task error: No space left on device (os error 28)"), "HF_HOME"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "be kept in .* set HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "be kept in .* set HF_HO"),
    ],
)
def test_a_download_that_breaks_off(site, error, message):
    site.repos["a/b"] = ["b.Q8_0.gguf"]
    site.broken = error
    with pytest.raises(UserError, match=message):
        fetch("a/b")


def test_without_a_network_what_was_fetched_before_counts(site, tmp_path):
    site.repos["a/b-GGUF"] = ["b.Q4_K_M.gguf", "b.Q8_0.gguf"]
    path = fetch("a/b-GGUF:Q8_0")
    for error in (
        httpx.ConnectError("[Errno -2] Name or service not known"),
        OfflineModeIsEnabled("offline mode is enabled"),
    ):
        site.error = error
        assert fetch("a/b-GGUF:Q8_0") == path
        with pytest.raises(UserError, match="as fetched before, has no GGUF file"):
            fetch("a/b-GGUF:Q2_K")
        with pytest.raises(UserError, match=r"Q4_K_M is no file .* nor in the Hub's"):
            fetch("a/b-GGUF:Q4_K_M")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(UserError, match=r"a/b-GGUF:Q8_0 is no file or folder .*offli"):
        fetch("a/b-GGUF:Q8_0")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
        ValueError("Unknown scheme for proxy URL URL('socks://127.0.0.1:1080/')"),
    ],
)
def test_a_proxy_that_cannot_be_used(site, error):
    site.repos["a/b"] = [*HUGGING_FACE, "model.safetensors"]
    reason = re.escape(f"cannot be read ({error}). Check the spelling, the network")
    site.error = error
    with pytest.raises(UserError, match=reason):
        fetch("a/b")
    site.error, site.broken = None, error
    with pytest.raises(UserError, match=reason):
        fetch("a/b")
    # What was fetched before counts, as without a network.
    site.broken = None
    folder = fetch("a/b")
    site.error = error
    assert fetch("a/b") == folder


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(GatedRepoError), "Accept its terms at https://huggingface.co/a/b "),
        (refused(RepositoryNotFoundError), "a/b is no file or folder here, and the Hu"),
        (httpx.ReadTimeout(""), r"cannot be read \(ReadTimeout\)"),
    ],
)
def test_what_the_hub_refuses(site, error, message):
    site.error = error
    with pytest.raises(UserError, match=message):
        fetch("a/b")


@pytest.mark.parametrize("name", ["b", "../b", "a/b:", "a/b:c:d", "a/-b", "a /b", ""])
def test_what_is_no_id(site, name):
    with pytest.raises(UserError, match="does not exist"):
        fetch(name)
