"""The CPU kernels as other CPUs run them, under qemu's emulation.

``entry.mojo`` is compiled for each, linked with ``main.c``, which needs no more than
a C library, and runs on all cases in one go. Run by ``make test-qemu``.
"""

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from max.dtype import DType
from mojo.run import subprocess_run_mojo

from max_mistral import kernels
from max_mistral.kernels.packing import Encoding, pack
from tests.kv_cache_reference import stored
from tests.unit import test_attention_kernel as attention
from tests.unit.test_kernels import (
    DENSE,
    activations,
    quantization,
    random_weight,
    rounding,
)
from tests.unit.test_odd_shapes import SHAPES

HERE = Path(__file__).parent
# CPU as the compiler calls it: triple, C compiler, emulator, the CPU that it plays.
TARGETS = {
    "haswell": ("x86_64-unknown-linux-gnu", "gcc", "qemu-x86_64", "Haswell"),
    "neoverse-n1": (
        "aarch64-unknown-linux-gnu",
        "aarch64-linux-gnu-gcc",
        "qemu-aarch64",
        "neoverse-n1",
    ),
}
PACKAGES = "qemu-user gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
LINEAR, EMBEDDING, ATTENTION, ROUNDED, ATTENTION_BF16, ATTENTION_INT8 = range(6)
CACHES = {
    ATTENTION: DType.float32,
    ATTENTION_BF16: DType.bfloat16,
    ATTENTION_INT8: DType.int8,
}


def linear_cases():
    """Yields sizes, inputs and the scratch's bytes of each encoding and shape."""
    for encoding in Encoding:
        for tokens, rows, widths in SHAPES:
            columns = widths[encoding.block_columns]
            weight = random_weight(encoding, rows, columns)[0]
            packed = pack(weight, encoding, columns)
            sizes = [LINEAR, int(encoding), tokens, rows, columns]
            scratch = 8 * (tokens + 1) * (columns + 1) + 64
            # A row more, which `filled` may take.
            x = np.pad(activations(tokens, columns), ((0, 1), (0, 0)))
            inputs = [x, packed]
            yield sizes, inputs, tokens * rows, scratch
            yield [ROUNDED, *sizes[1:]], inputs, tokens * rows, scratch
            yield [EMBEDDING, int(encoding), rows, columns], [packed], rows * columns, 0


def attention_cases():
    """The same of each shape, cache and request of attention."""
    for name, what in itertools.product(attention.SHAPES, CACHES):
        shape = attention.SHAPES[name]
        heads, kv_heads, head_dim, page_size, window = shape
        qkv, freqs, scales, blocks, table = attention.inputs(name)
        blocks = stored(blocks, CACHES[what])
        scales = np.broadcast_to(scales, len(qkv))[:, None]
        at = 0
        for (new, cached), pages in zip(attention.BATCH, table, strict=True):
            sizes = [what, head_dim, new, heads, kv_heads, page_size]
            sizes += [window or 2**31, attention.LAYER, attention.LAYERS, cached]
            now = slice(at, at + new)
            turns = freqs[cached : cached + new]
            new_rows = np.concatenate([qkv[now], turns, scales[now]], 1)
            inputs = [new_rows, blocks, pages]
            # Two states for each of 8 tokens, a vector longer at most.
            yield sizes, inputs, new * heads * head_dim, 4 * 8 * heads * 2 * 192
            at += new


def record(sizes, inputs, floats, scratch):
    """A case as ``main.c`` reads it."""
    arrays = [np.ascontiguousarray(array).tobytes() for array in inputs]
    arrays += [b""] * (3 - len(arrays))
    head = [*sizes, *[0] * (10 - len(sizes)), *map(len, arrays), 4 * floats, scratch]
    return np.array(head, np.int64).tobytes() + b"".join(arrays)


@pytest.fixture(scope="module", params=TARGETS)
def found(request, tmp_path_factory):
    """Yields what each case returns on a CPU, one after another."""
    triple, compiler, emulator, plays = TARGETS[request.param]
    missing = [tool for tool in (compiler, emulator) if not shutil.which(tool)]
    if missing:
        pytest.fail(f"{missing} are not there; Debian has them in {PACKAGES}.")
    folder = tmp_path_factory.mktemp(request.param)
    code, program = folder / "entry.o", folder / "kernels"
    command = ["build", "-I", str(Path(kernels.__file__).parent.parent)]
    command += ["--emit", "object", "--target-triple", triple]
    command += ["--target-cpu", request.param, str(HERE / "entry.mojo")]
    subprocess_run_mojo(
        [*command, "-o", str(code)], check=True, capture_output=True, text=True
    )
    command = [compiler, "-static", str(HERE / "main.c"), str(code), "-o", str(program)]
    subprocess.run(command, check=True)
    cases = [*linear_cases(), *attention_cases()]
    done = subprocess.run(
        [emulator, "-cpu", plays, str(program)],
        input=b"".join(record(*case) for case in cases),
        capture_output=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    ends = np.cumsum([floats for _, _, floats, _ in cases])
    values = np.frombuffer(done.stdout, np.float32)
    assert len(values) == ends[-1]
    return [sizes for sizes, *_ in cases], np.split(values, ends[:-1])


def test_linear_layers_and_embeddings(found):
    outputs = zip(*found, strict=True)
    for encoding in Encoding:
        for tokens, rows, widths in SHAPES:
            columns = widths[encoding.block_columns]
            weight = random_weight(encoding, rows, columns)[1]
            x = activations(tokens, columns).astype(np.float64)
            bound = rounding(encoding, weight, x)
            # All these CPUs have dot products of int8.
            rounded = bound + (0 if encoding in DENSE else quantization(weight, x))
            both = []
            for what, most in ((LINEAR, bound), (ROUNDED, rounded)):
                sizes, y = next(outputs)
                assert sizes == [what, int(encoding), tokens, rows, columns]
                error = np.abs(y.reshape(tokens, rows) - x @ weight.T)
                assert (error <= most).all(), encoding
                both.append(y)
            same = encoding in DENSE or not tokens
            assert np.array_equal(*both) == same, encoding
            sizes, y = next(outputs)
            assert sizes == [EMBEDDING, int(encoding), rows, columns]
            near = rounding(encoding, weight, np.eye(columns)).T
            assert (np.abs(y.reshape(rows, columns) - weight) <= near).all(), encoding


@pytest.mark.parametrize("name", attention.SHAPES)
@pytest.mark.parametrize("what", CACHES)
def test_attention(found, name, what):
    head_dim = attention.SHAPES[name][2]
    outputs = [
        y for sizes, y in zip(*found, strict=True) if sizes[:2] == [what, head_dim]
    ]
    assert len(outputs) == len(attention.BATCH)
    want, bound = attention.reference(name, CACHES[what], False)
    error = np.abs(np.concatenate(outputs) - want.ravel()).max()
    assert error <= bound, (error, bound)
