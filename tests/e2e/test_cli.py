"""``max generate``: a sensible answer, and a sentence for every mistake."""

import json
import shutil

import ml_dtypes
import pytest
from safetensors.numpy import save_file

from tests.e2e.conftest import DEMO_FLAGS, run_max, run_python
from workbench.checkpoints import BASE, write_checkpoint
from workbench.demo import GGUF
from workbench.quantized import CONFIG, LAYOUTS, write_quantized

QUESTION = "What is the capital of France? Answer in one sentence."


def test_the_demo_names_paris(demo_model):
    result = run_max(
        "generate",
        *DEMO_FLAGS,
        *("--model", demo_model),
        *("--temperature", "0", "--max-new-tokens", "60"),
        *("--prompt", QUESTION),
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert "architecture         : MistralForCausalLM" in result.stderr + result.stdout


def test_one_command_from_the_file_names_paris():
    """Prepared in the user's cache, where the kernels are that the graph names."""
    result = run_python(
        *("-m", "max_mistral.command", "generate", GGUF),
        # As in the Makefile, for one compiled graph.
        *("--devices", "cpu", "--max-length", "2048"),
        *("--temperature", "0", "--max-new-tokens", "60"),
        *("--prompt", QUESTION),
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert "generate --custom-architectures max_mistral --model" in result.stderr


def test_fp8_answers_on_a_cpu_as_its_bfloat16_checkpoint_does(tmp_path):
    """Through MAX's own checks of files and encodings, with random weights."""
    answers = []
    for name in ("fp8", "plain"):
        folder = write_checkpoint(tmp_path / name, CONFIG)
        worth = write_quantized(tmp_path / "fp8", LAYOUTS["static"])
        if name == "plain":
            weights = {n: t.astype(ml_dtypes.bfloat16) for n, t in worth.items()}
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        result = run_python(
            *("-m", "max_mistral.command", "generate", folder),
            *("--devices", "cpu", "--temperature", "0", "--max-new-tokens", "20"),
            *("--prompt", "hello"),
        )
        assert result.returncode == 0, result.stderr
        answers.append(result.stdout.partition("Prompt size")[0])
    assert answers[0] == answers[1]
    assert answers[0].strip()


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


# What is wrong with the folder, the flags, and the sentence that says so: one of each
# place that raises. The unit tests have the others.
OURS = {
    "missing key": (
        lambda folder: change_config(folder, intermediate_size="drop"),
        [],
        "lacks intermediate_size",
    ),
    "truncated": (
        lambda folder: truncate(folder / "model.safetensors"),
        [],
        "is not a complete safetensors file",
    ),
    "wrong shape": (
        lambda folder: change_config(folder, intermediate_size=128),
        [],
        "config.json makes it [128, 96]",
    ),
    "NVFP4 on a CPU": (
        lambda folder: write_quantized(folder, LAYOUTS["nvfp4"]),
        ["--quantization-encoding", "float32"],
        "runs on GPUs only",
    ),
    "max length": (lambda folder: None, ["--max-length", "513"], "is 512"),
    "no length": (lambda folder: None, ["--max-length", "0"], "max_length is 0"),
    "data parallel": (
        lambda folder: None,
        ["--data-parallel-degree", "2"],
        "data_parallel_degree",
    ),
}

# Checked by MAX before any of our code runs, so the words are MAX's.
MAXES = {
    "no such folder": (shutil.rmtree, [], "Failed to access repository"),
    "no config.json": (
        lambda folder: (folder / "config.json").unlink(),
        [],
        "No config.json",
    ),
    "config.json is not JSON": (
        lambda folder: (folder / "config.json").write_text("{no"),
        [],
        "JSONDecodeError",
    ),
    "bfloat16 on a CPU": (
        lambda folder: write_checkpoint(folder, BASE, dtype="bfloat16"),
        ["--quantization-encoding", "bfloat16"],
        "The encoding 'bfloat16' is not compatible with the selected device type 'cpu'",
    ),
    "bfloat16 on a CPU, without the flag": (
        lambda folder: write_checkpoint(folder, BASE, dtype="bfloat16"),
        [],
        "compatible weights cannot be found for 'float32'",
    ),
    "a weight file that is not there": (
        lambda folder: None,
        ["--weight-path", "/no/such/folder/model.safetensors"],
        "Repo id must use alphanumeric chars",
    ),
    "a relative path of a GGUF file": (
        lambda folder: None,
        ["--weight-path", "elsewhere.gguf"],
        "gguf file, but encoding not found in file name",
    ),
}


@pytest.mark.parametrize("case", list(OURS))
def test_our_message_comes_without_a_traceback(tmp_path, case):
    result, message = generate_broken(tmp_path / "model", OURS[case])
    assert result.returncode == 1
    assert message in result.stderr
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("case", list(MAXES))
def test_max_itself_names_the_rest(tmp_path, case):
    result, message = generate_broken(tmp_path / "model", MAXES[case])
    assert result.returncode != 0
    assert message in result.stderr + result.stdout


def generate_broken(folder, case):
    """Runs a checkpoint that the case broke; returns the result and its message."""
    breakage, flags, message = case
    breakage(write_checkpoint(folder, BASE))
    result = run_max(
        *("generate", "--custom-architectures", "max_mistral"),
        *("--model", folder, "--devices", "cpu", "--prompt", "hi", *flags),
        timeout=120,
    )
    return result, message


def test_a_truncated_gguf_file_is_refused(tmp_path, demo_model):
    part = tmp_path / "model-q4_0.gguf"
    part.write_bytes(GGUF.read_bytes()[:-1000])
    result = run_max(
        *("generate", "--custom-architectures", "max_mistral", "--devices", "cpu"),
        *("--model", demo_model, "--weight-path", part, "--prompt", "hi"),
    )
    assert result.returncode == 1
    assert f"Error: {part} is not a complete GGUF file" in result.stderr
    assert "Traceback" not in result.stderr


def test_prepare_says_what_is_wrong(tmp_path):
    result = run_python(
        "-m", "max_mistral.prepare", tmp_path / "no.gguf", tmp_path / "new"
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "does not exist" in result.stderr
