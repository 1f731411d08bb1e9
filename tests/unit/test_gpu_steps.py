"""``scripts/gpu_steps.py``: what is asked, and in which order."""

from benchmarks import gpu, gpu_engines, matmul
from scripts import gpu_steps
from workbench.checkpoints import CONFIGS
from workbench.quantized import LAYOUTS


def test_every_case_has_a_step(tmp_path):
    """The script names the cases itself, for it imports no package."""
    assert list(CONFIGS) == gpu_steps.CONFIGS
    assert list(LAYOUTS) == gpu_steps.LAYOUTS
    assert list(matmul.MATMULS) == gpu_steps.MATMULS
    assert list(gpu.ENGINES) == gpu_steps.ENGINES
    names = [step.name for step in gpu_steps.steps(tmp_path)]
    assert len(names) == len(set(names))


def test_what_is_asked_first(tmp_path):
    every = list(gpu_steps.steps(tmp_path))
    ordered = gpu_steps.in_order(every)
    names = [step.name for step in ordered]
    assert names[: len(gpu_steps.FIRST)] == gpu_steps.FIRST
    assert sorted(names) == sorted(step.name for step in every)
    # The speeds need the weights, and say what share of the ceilings they are.
    assert names.index("weights") < names.index("speed-max_mistral")
    assert names.index("ceilings") < names.index("speed-max_mistral")


def test_large_files_do_not_go_where_the_report_does(tmp_path):
    for step in gpu_steps.steps(tmp_path):
        paths = [word for word in step.command if str(tmp_path) in word]
        assert all(path.endswith(".json") for path in paths)
        assert step.figures is None or str(step.figures) in paths


def test_the_model_is_compiled_and_served_at_one_length(tmp_path):
    found = {step.name: step.command for step in gpu_steps.steps(tmp_path)}
    for name in ("serving", "serving-max"):
        words = found[name]
        length = words[words.index("--max-length", words.index("--")) + 1]
        assert int(length) == gpu_engines.MAX_LENGTH
        # And for as many users.
        assert "--users" not in words
    assert max(batch for batch, _, _ in gpu_engines.DECODES.values()) == 64
