"""Damaged and hostile files: each loads or raises a UserError, and nothing else.

The cases are mutations of good files that keep most of their structure, the same
at every run. ``make fuzz`` runs more and others (``MAX_MISTRAL_FUZZ``: how many
of a kind).
"""

import copy
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from transformers import AutoConfig

from max_mistral import hf_config, hf_rope
from max_mistral.errors import UserError
from max_mistral.hf_quantization import read_quantization
from max_mistral.prepare import gguf_config, native
from max_mistral.prepare.gguf_tokenizer import write_tokenizer as write_gguf_tokenizer
from max_mistral.prepare.lora.adapter import read_adapter
from max_mistral.prepare.mistral_tokenizer import write_tokenizer
from max_mistral.rope_frequencies import inverse_frequencies
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.safetensors_file import stored_tensors
from tests.lora_reference import GOLDENS, TINY
from workbench.checkpoints import CONFIGS, write_native
from workbench.quantized import CONFIG, LAYOUTS

COUNT = int(os.environ.get("MAX_MISTRAL_FUZZ", "1500"))
FUZZ = settings(
    max_examples=COUNT,
    derandomize="MAX_MISTRAL_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SECONDS, KILOBYTES = 10, 2**20

PLAIN = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63)),
    *(10**30, 0.0, -1.5, 1e-320, 1e308, float("nan"), float("inf"), "", "x", "1"),
    *("x" * 2000, "\0", "\ud800", [], [[]], [None], {}, {"x": {}}, [1] * 3000),
]
JUNK = st.one_of(
    # A copy, for the next mutation may be within it.
    st.sampled_from(PLAIN).map(copy.deepcopy),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


def places(value, at=()):
    """The paths of everything in a JSON value, the first few of a long list."""
    yield at
    items = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:6]))
    for key, inner in items:
        yield from places(inner, (*at, key))


@st.composite
def mutated(draw, good):
    """A JSON value with one to three things replaced, gone, or more than once."""
    value = {"": copy.deepcopy(good)}
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in places(value) if p]))
        parent = value
        for key in way:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "drop", "copy"]))
        if action == "replace" or not way:
            parent[last] = draw(JUNK)
        elif action == "drop":
            del parent[last]
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[last]) for _ in range(2))
        else:
            parent[draw(st.text(max_size=6))] = copy.deepcopy(parent[last])
    return value[""]


@st.composite
def damaged(draw, good):
    """Bytes, some of them others, gone or there twice."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        action = draw(st.sampled_from(["set", "set", "drop", "repeat", "cut"]))
        if action == "set":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif action == "drop":
            del data[at : at + size]
        elif action == "repeat":
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def dumps(value) -> bytes:
    return json.dumps(value).encode()


@st.composite
def json_files(draw, good):
    """Mostly JSON that is well formed, sometimes not even that."""
    data = dumps(draw(mutated(good)))
    return draw(damaged(data)) if draw(st.integers(0, 4)) == 0 else data


def memory(name):
    """What Linux says that this process holds, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1])


def life_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def watch_memory():
    """Returns what is held now, in KiB, and a function for the most since.

    Where Linux does not count the most anew, it is that of the process's life, and
    what came before, as a graph's compilation, hides what is less.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return life_peak(), life_peak
    return memory("VmRSS"), lambda: memory("VmHWM")


@contextmanager
def loads_or_is_refused():
    """Fails at another exception, a hang, or much memory."""

    def hang(*_):
        raise AssertionError(f"it took more than {SECONDS} seconds")

    before, most = watch_memory()
    old = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        message = str(error)
        assert 10 < len(message) < 3000
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert most() - before < KILOBYTES


def counts_anew():
    return watch_memory()[1] is not life_peak


@pytest.mark.skipif(not counts_anew(), reason="the peak cannot be reset here")
@pytest.mark.parametrize("refused", [False, True])
def test_much_memory_is_noticed_even_if_there_was_more_before(monkeypatch, refused):
    monkeypatch.setattr(sys.modules[__name__], "KILOBYTES", 2**16)
    np.ones(2**28, np.uint8)
    with loads_or_is_refused():
        np.ones(2**25, np.uint8)

    def much():
        with loads_or_is_refused():
            np.ones(2**27, np.uint8)
            if refused:
                raise UserError("It is damaged.")

    with pytest.raises(AssertionError):
        much()


class Good:
    """A good file, which a failure's report need not show."""

    def __init__(self, value):
        self.value = value


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


DEFAULTS = {"model_type": "mistral", "hidden_act": "silu", "sliding_window": None}


def read_hf_config(values):
    config = SimpleNamespace(**DEFAULTS | values)
    hf_config.check_supported(config)
    hf_config.max_seq_len(config, None)
    head_dim = hf_config.head_dim(config)
    table = inverse_frequencies(
        head_dim, hf_rope.rope_theta(config), hf_rope.rope_scaling(config)
    )
    assert np.all(np.isfinite(table))


@FUZZ
@given(st.sampled_from(list(CONFIGS.values())).flatmap(mutated))
def test_config_json(values):
    with loads_or_is_refused():
        read_hf_config(values if isinstance(values, dict) else {})


PARAMS = {
    **{"dim": 96, "n_layers": 4, "head_dim": 32, "hidden_dim": 160, "n_heads": 4},
    **{"n_kv_heads": 1, "norm_eps": 1e-5, "vocab_size": 320, "rope_theta": 1e6},
    **{"sliding_window": [None, 128], "max_seq_len": 512, "tied_embeddings": True},
}
YARN = {
    **{"factor": 16, "original_max_position_embeddings": 16, "beta": 8, "alpha": 2},
    "apply_scale": False,
}
SCALED = {"beta": 0.1, "original_max_position_embeddings": 16}
FP8 = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
MINISTRAL3 = {k: v for k, v in PARAMS.items() if k not in ("sliding_window",)} | {
    **{"yarn": YARN, "llama_4_scaling": SCALED, "quantization": FP8}
}


@FUZZ
@given(st.sampled_from([PARAMS, MINISTRAL3]).flatmap(json_files))
def test_params_json(folder, data):
    with loads_or_is_refused():
        config = native.read_config(write(folder / "params.json", data))
        read_hf_config(config)


@pytest.fixture(scope="module")
def tekken(folder):
    file = write_native(folder / "native", CONFIGS["gqa"]) / "tekken.json"
    return Good(json.loads(file.read_text()))


@FUZZ
@given(data=st.data())
def test_tekken_json(folder, tekken, data):
    file = write(folder / "tekken.json", data.draw(json_files(tekken.value)))
    with loads_or_is_refused():
        write_tokenizer(file, folder)


@pytest.fixture(scope="module")
def sentencepiece():
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sat on a mat", "that cat is fat"] * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=280,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return Good(model.getvalue())


@FUZZ
@given(data=st.data())
def test_tokenizer_model(folder, sentencepiece, data):
    file = write(folder / "tokenizer.model", data.draw(damaged(sentencepiece.value)))
    with loads_or_is_refused():
        write_tokenizer(file, folder)


QUANTIZED = [layout.config for layout in LAYOUTS.values() if not layout.standalone]


@FUZZ
@given(st.sampled_from(QUANTIZED).flatmap(mutated))
def test_quantization_config(found):
    config = AutoConfig.for_model(**CONFIG)
    config.quantization_config = found
    with loads_or_is_refused():
        read_quantization(config, None)


@pytest.fixture(scope="module")
def adapter(folder):
    """An adapter with patterns, and what its config says that counts."""
    copied = shutil.copytree(GOLDENS / "rslora_patterns", folder / "adapter")
    found = json.loads((copied / "adapter_config.json").read_text())
    config = {key: value for key, value in found.items() if value}
    config |= {"target_modules": ["q_proj", "k_proj", "v_proj"]}
    config |= {"layers_to_transform": [0, 1]}
    write(copied / "adapter_config.json", dumps(config))
    assert read_adapter(copied, AutoConfig.for_model(**TINY))
    return Good((copied, config))


@FUZZ
@given(data=st.data())
def test_adapter_config(adapter, data):
    copied, good = adapter.value
    write(copied / "adapter_config.json", data.draw(json_files(good)))
    with loads_or_is_refused():
        read_adapter(copied, AutoConfig.for_model(**TINY))


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [8], "data_offsets": [32, 48]},
    "c": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [48, 49]},
}


@FUZZ
@given(json_files(HEADER), st.sampled_from([0, 0, 0, 1, -1, 2**63]))
def test_safetensors_header(folder, header, more):
    size = (len(header) + more) % 2**64
    data = size.to_bytes(8, "little") + header + bytes(49)
    with loads_or_is_refused():
        for tensor in stored_tensors([write(folder / "m.safetensors", data)]).values():
            assert tensor.offset + tensor.size <= len(data)
            tensor.read()


# A GGUF file as its writer sees it: keys with types, tensors with offsets.
KEYS = {
    "general.architecture": (8, "llama"),
    "general.alignment": (4, 32),
    "llama.embedding_length": (4, 8),
    "llama.block_count": (4, 1),
    "llama.attention.head_count": (4, 2),
    "llama.attention.head_count_kv": (4, 1),
    "llama.attention.layer_norm_rms_epsilon": (6, 1e-5),
    "llama.feed_forward_length": (4, 12),
    "llama.context_length": (4, 64),
    "llama.rope.freq_base": (6, 1e6),
    "llama.rope.dimension_count": (4, 4),
    "llama.rope.scaling.type": (8, "yarn"),
    "llama.rope.scaling.factor": (6, 4.0),
    "llama.rope.scaling.original_context_length": (4, 16),
    "llama.rope.scaling.yarn_log_multiplier": (6, 1.0),
    "llama.attention.temperature_scale": (6, 0.1),
    "tokenizer.ggml.model": (8, "gpt2"),
    "tokenizer.ggml.pre": (8, "gpt-2"),
    "tokenizer.ggml.tokens": (98, ["<s>", "a", "b", "ab", "<unk>"]),
    "tokenizer.ggml.scores": (96, [0.0, -1.0, -2.0, -3.0, 0.0]),
    "tokenizer.ggml.token_type": (95, [3, 1, 1, 1, 2]),
    "tokenizer.ggml.merges": (98, ["a b"]),
    "tokenizer.ggml.bos_token_id": (4, 0),
    "tokenizer.ggml.eos_token_id": (4, 0),
    "tokenizer.ggml.add_bos_token": (7, True),
    "tokenizer.ggml.add_eos_token": (7, True),
    "tokenizer.chat_template": (8, "{{ messages }}"),
}
TENSORS = [["token_embd.weight", [8, 4], 0, 0], ["rope_freqs.weight", [2], 0, 128]]
TENSORS += [["output_norm.weight", [8], 0, 160], ["q", [32, 1], 2, 192]]
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
FORMATS |= {10: "Q", 11: "q", 12: "d"}


def pack(kind, value) -> bytes:
    """A value in a type that it may not fit."""
    if kind == 8:
        data = value.encode("utf-8", "replace") if isinstance(value, str) else b"x"
        return struct.pack("<Q", len(data)) + data
    if kind >= 90:
        items = value if isinstance(value, list) else [value]
        head = struct.pack("<IQ", kind - 90, len(items))
        return head + b"".join(pack(kind - 90, item) for item in items)
    try:
        return struct.pack("<" + FORMATS.get(kind, "I"), value)
    except (struct.error, TypeError, OverflowError):
        return struct.pack("<Q", hash(str(value)) % 2**64 if value else 0)


def type_of(value):
    kinds = {bool: 7, float: 12, str: 8, int: 11}
    if isinstance(value, list):
        return 90 + kinds.get(type(value[0]) if value else str, 8)
    return kinds.get(type(value), 4)


def make_gguf(keys, tensors, counts) -> bytes:
    header = b"GGUF" + struct.pack("<I", 3)
    for count, more in zip((len(tensors), len(keys)), counts, strict=True):
        header += struct.pack("<Q", (count + more) % 2**64)
    for name, (kind, value) in keys.items():
        kind_number = 9 if kind >= 90 else kind
        header += pack(8, name) + struct.pack("<I", kind_number) + pack(kind, value)
    for name, shape, kind, offset in tensors:
        header += pack(8, name) + struct.pack("<I", len(shape))
        header += b"".join(pack(10, size) for size in shape)
        header += pack(4, kind) + pack(10, offset)
    ones = np.ones(2, np.float32).tobytes()
    data = bytes(128) + ones + bytes(24) + bytes(32) + bytes(18)
    return header + bytes(-len(header) % 32) + data


@st.composite
def gguf_files(draw):
    keys, tensors = dict(KEYS), copy.deepcopy(TENSORS)
    if draw(st.booleans()):
        keys["tokenizer.ggml.model"] = (8, "llama")
    if draw(st.booleans()):
        keys["llama.rope.scaling.type"] = (8, draw(st.sampled_from(["none", "linear"])))
        del keys["llama.attention.temperature_scale"]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(list(keys)))
        kind, value = keys[name]
        action = draw(st.sampled_from(["value", "item", "type", "drop", "name"]))
        if action == "item" and isinstance(value, list) and value:
            at = draw(st.integers(0, len(value) - 1))
            keys[name] = (kind, value[:at] + [draw(JUNK)] + value[at + 1 :])
        elif action == "type":
            keys[name] = (draw(st.integers(0, 102)), value)
        elif action == "drop":
            del keys[name]
        elif action == "name":
            keys[draw(st.text(max_size=6))] = keys.pop(name)
        else:
            value = draw(JUNK)
            keys[name] = (draw(st.sampled_from([kind, type_of(value)])), value)
    if draw(st.integers(0, 2)) == 0:
        tensor = draw(st.sampled_from(tensors))
        sizes = st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1))
        tensor[1] = draw(
            st.sampled_from([tensor[1], draw(st.lists(sizes, max_size=6))])
        )
        tensor[2] = draw(st.one_of(st.just(tensor[2]), st.integers(0, 45)))
        tensor[3] = draw(st.one_of(st.just(tensor[3]), sizes))
    more = st.sampled_from([0, 0, 0, 0, 1, -1, 2**40, 2**63])
    data = make_gguf(keys, tensors, (draw(more), draw(more)))
    return draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


def read_gguf(path, folder):
    GGUFCheckpoint(path, vocabulary=False)
    checkpoint = GGUFCheckpoint(path)
    for tensor in checkpoint.tensors.values():
        assert tensor.stored.read().size == tensor.stored.size
    read_hf_config(gguf_config.read_config(checkpoint))
    write_gguf_tokenizer(checkpoint, folder)


@FUZZ
@given(gguf_files())
def test_gguf(folder, data):
    with loads_or_is_refused():
        read_gguf(write(folder / "m.gguf", data), folder)


def test_the_good_files_load(folder, tekken, sentencepiece):
    """Else the others would be refused for another reason than their damage."""
    for config in CONFIGS.values():
        read_hf_config(config)
    for params in (PARAMS, MINISTRAL3):
        path = write(folder / "params.json", dumps(params))
        read_hf_config(native.read_config(path))
    path = write(folder / "tekken.json", dumps(tekken.value))
    assert write_tokenizer(path, folder) == 320
    path = write(folder / "tokenizer.model", sentencepiece.value)
    assert write_tokenizer(path, folder) > 256
    header = dumps(HEADER)
    data = len(header).to_bytes(8, "little") + header + bytes(49)
    assert len(stored_tensors([write(folder / "m.safetensors", data)])) == 3
    data = make_gguf(KEYS, TENSORS, (0, 0))
    read_gguf(write(folder / "m.gguf", data), folder)
    sentencepieces = KEYS | {"tokenizer.ggml.model": (8, "llama")}
    data = make_gguf(sentencepieces, TENSORS, (0, 0))
    read_gguf(write(folder / "m.gguf", data), folder)
