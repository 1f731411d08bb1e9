"""A GGUF file says nothing that is not held against the file itself."""

import math
import struct

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from max_mistral import MistralConfig, hf_rope
from max_mistral.errors import UserError
from max_mistral.hf_rope import RopeScaling
from max_mistral.prepare import prepare
from max_mistral.prepare.gguf_config import read_config
from max_mistral.prepare.gguf_tokenizer import write_tokenizer
from max_mistral.weights.gguf_agrees import check_config
from max_mistral.weights.gguf_file import GGUFCheckpoint
from max_mistral.weights.gguf_header import read_header
from tests.unit.test_gguf import write_gguf
from workbench.runner import make_pipeline_config


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def text(value):
    return u64(len(value)) + value.encode()


def tensor(name, shape, kind, offset):
    sizes = b"".join(map(u64, shape))
    return text(name) + u32(len(shape)) + sizes + u32(kind) + u64(offset)


def write(path, keys=(), tensors=(), *, data=b"", counts=None, version=3):
    """A file of any keys (bytes behind the name) and tensors."""
    numbers = counts or (len(tensors), len(keys))
    header = b"GGUF" + u32(version) + b"".join(map(u64, numbers))
    header += b"".join(text(name) + value for name, value in keys) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def array(kind, count, data=b""):
    return u32(9) + u32(kind) + u64(count) + data


def test_it_reads_what_the_gguf_package_reads(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", scaling=gguf.RopeScalingType.YARN)
    header, reader = read_header(path), gguf.GGUFReader(path)
    names = {name for name in reader.fields if not name.startswith("GGUF.")}
    assert header.metadata.keys() == names
    for name in names:
        assert header.metadata[name] == reader.get_field(name).contents(), name
    assert list(header.tensors) == [t.name for t in reader.tensors]
    for want in reader.tensors:
        found = header.tensors[want.name]
        assert found.shape == tuple(reversed(want.shape.tolist()))
        assert (found.ggml_type, found.stored.size) == (want.tensor_type, want.n_bytes)
        assert np.array_equal(found.stored.read(), want.data.reshape(-1).view(np.uint8))


def test_the_vocabulary_can_be_left_out(tmp_path):
    header = read_header(write_gguf(tmp_path / "m.gguf"), vocabulary=False)
    assert header.metadata["tokenizer.ggml.tokens"] is None
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2


def test_a_pipe_is_not_waited_for(pipe):
    with pytest.raises(UserError, match=r"m\.gguf is .* no plain file"):
        read_header(pipe("m.gguf"))


MUCH = [2**16, 2**22, 2**40, 2**63, 2**64 - 1]


@pytest.mark.parametrize("count", MUCH)
@pytest.mark.parametrize("vocabulary", [True, False])
@pytest.mark.parametrize("kind", [0, 5, 8, 10])
def test_an_array_longer_than_the_file(tmp_path, count, kind, vocabulary):
    keys = [("tokenizer.ggml.tokens", array(kind, count))]
    with pytest.raises(UserError, match=f"{count} items in 'tokenizer.ggml.tokens'"):
        read_header(write(tmp_path / "m.gguf", keys), vocabulary=vocabulary)


def test_an_array_in_a_sparse_file(tmp_path):
    """The size of a file is no bound where it costs nothing."""
    path = write(tmp_path / "m.gguf", [("a", array(8, 2**30))])
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="items in 'a'"):
        read_header(path)


@pytest.mark.parametrize("count", MUCH)
def test_more_keys_or_tensors_than_the_file_holds(tmp_path, count):
    with pytest.raises(UserError, match=f"{count} tensors"):
        read_header(write(tmp_path / "m.gguf", counts=(count, 0)))
    with pytest.raises(UserError, match=f"{count} metadata keys"):
        read_header(write(tmp_path / "m.gguf", counts=(0, count)))


@pytest.mark.parametrize("count", MUCH)
def test_a_string_longer_than_the_file(tmp_path, count):
    path = write(tmp_path / "m.gguf", [("a", u32(8) + u64(count))])
    with pytest.raises(UserError, match="its header goes on"):
        read_header(path)


GOOD = [tensor("a", [8], 0, 0), tensor("b", [32, 2], 2, 32)]


def test_tensors_one_behind_the_other(tmp_path):
    header = read_header(write(tmp_path / "m.gguf", (), GOOD, data=bytes(68)))
    assert {n: (t.shape, t.stored.size) for n, t in header.tensors.items()} == {
        "a": ((8,), 32),
        "b": ((2, 32), 36),
    }


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (tensor("b", [32, 2], 2, 0), "'b' is at 0 of the data, where 32"),
        (tensor("b", [32, 2], 2, 33), "'b' is at 33 of the data"),
        (tensor("b", [32, 2], 2, 64), "'b' is at 64 of the data"),
        (tensor("b", [32, 2], 2, 2**64 - 64), "'b' is at 18446744073709551552"),
        (tensor("b", [32, 3], 2, 32), "'b' ends at"),
        (tensor("b", [2**40, 2**40, 2**40], 0, 32), "'b' ends at"),
        (tensor("b", [31, 2], 2, 32), "rows of 31, which come in blocks of 32"),
        (tensor("b", [32, 0], 2, 32), "a dimension of 0"),
        (tensor("b", [], 2, 32), "0 dimensions"),
        (tensor("b", [1] * 5, 2, 32), "5 dimensions"),
        (tensor("a", [32, 2], 2, 32), "the tensor 'a' twice"),
        (tensor("b", [32, 2], 4, 32), "'b' of the type 4"),
    ],
)
def test_a_tensor_is_where_its_size_puts_it(tmp_path, second, message):
    path = write(tmp_path / "m.gguf", (), [GOOD[0], second], data=bytes(68))
    with pytest.raises(UserError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("kind", "name"), [(31, "Q4_0_4_4"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4")]
)
def test_a_type_that_llama_cpp_has_removed(tmp_path, kind, name):
    second = tensor("b", [32, 2], kind, 32)
    path = write(tmp_path / "m.gguf", (), [GOOD[0], second], data=bytes(68))
    with pytest.raises(UserError, match=f"'b' of the type {name}, .* Q4_0 or Q4_K_M"):
        read_header(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([("a", u32(4) + u32(1))] * 2, "key 'a' twice"),
        ([("a", u32(13) + u32(1))], "unknown type 13"),
        ([("a", array(9, 1, array(4, 1)))], "an array of the type 9"),
        ([("a", u32(8) + u64(2) + b"\xff\xfe")], "no UTF-8"),
        ([("general.alignment", u32(4) + u32(0))], "general.alignment is 0"),
        ([("general.alignment", u32(4) + u32(48))], "general.alignment is 48"),
        ([("general.alignment", u32(8) + text("32"))], "general.alignment is '32'"),
    ],
)
def test_metadata_that_is_none(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        read_header(write(tmp_path / "m.gguf", keys))


def test_another_byte_order_or_version(tmp_path):
    for version in (0, 1, 4, 3 << 24):
        with pytest.raises(UserError, match=f"version {version},"):
            read_header(write(tmp_path / "m.gguf", version=version))


def edited(path, *, divisors=None, **changes):
    """``write_gguf``'s file with metadata set, or left out where it is None.

    ``divisors`` becomes its ``rope_freqs.weight``.
    """
    reader = gguf.GGUFReader(write_gguf(path.with_suffix(".good")))
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        name: (field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    kinds = {bool: 7, int: 11, float: 12, str: 8, list: 9}
    for key, value in changes.items():
        key = key.replace("__", ".")
        values[key] = (value, [gguf.GGUFValueType(kinds.get(type(value), 0))])
    for name, (value, types) in values.items():
        if value is not None:
            writer.add_key_value(name, value, *types[:1])
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


REFUSED = [
    # What no config can say (finding 10).
    ("llama.rope.dimension_count", 2),
    ("llama.attention.value_length", 8),
    ("llama.rope.scaling.attn_factor", 0.5),
    ("llama.rope.scaling.yarn_ext_factor", 0.5),
    ("llama.attention.scale", 0.5),
    ("llama.attn_logit_softcapping", 30.0),
    ("llama.expert_count", 1),
    # Out of range (findings 8, 11).
    ("llama.block_count", 2**31),
    ("llama.block_count", 0),
    ("llama.embedding_length", 2**31),
    ("llama.feed_forward_length", -1),
    ("llama.attention.head_count", 0),
    ("llama.attention.head_count_kv", 0),
    ("llama.context_length", 0),
    ("llama.context_length", 2**40),
    ("llama.attention.layer_norm_rms_epsilon", 0.0),
    ("llama.attention.layer_norm_rms_epsilon", -1e-5),
    ("llama.attention.layer_norm_rms_epsilon", float("nan")),
    ("llama.attention.layer_norm_rms_epsilon", float("inf")),
    ("llama.rope.freq_base", 0.0),
    ("llama.rope.freq_base", float("nan")),
    ("llama.rope.scaling.factor", -1.0),
    ("llama.rope.scaling.factor", float("nan")),
    ("llama.attention.sliding_window", -1),
    ("tokenizer.ggml.eos_token_id", -1),
    ("tokenizer.ggml.eos_token_id", 4),
    ("tokenizer.ggml.bos_token_id", -1),
    ("tokenizer.ggml.bos_token_id", 4),
    # Of another type (finding 12).
    ("llama.embedding_length", "8"),
    ("llama.embedding_length", [8]),
    ("llama.attention.head_count", 2.5),
    ("llama.attention.head_count_kv", True),
    ("llama.rope.scaling.type", 7),
    ("tokenizer.ggml.tokens", "ab"),
    ("tokenizer.ggml.tokens", [1, 2, 3, 4]),
    ("tokenizer.ggml.tokens", None),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_a_model_of_other_maths_is_refused_by_name(tmp_path, key, value):
    path = edited(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        read_config(GGUFCheckpoint(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.model", 4),
        ("tokenizer.ggml.token_type", [1, 1, 1]),
        ("tokenizer.ggml.token_type", "1111"),
        ("tokenizer.ggml.merges", ["ab"]),
        ("tokenizer.ggml.merges", [1]),
        ("tokenizer.ggml.unknown_token_id", -1),
        ("tokenizer.ggml.padding_token_id", 4),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("tokenizer.ggml.add_eos_token", 1),
        ("tokenizer.chat_template", 7),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_name(tmp_path, key, value):
    path = edited(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        write_tokenizer(GGUFCheckpoint(path), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.merges", ["a z"], "merges 'a' and 'z'"),
        ("tokenizer.ggml.tokens", ["<s>", "a", "a", "ab"], "only 3 that differ"),
        ("tokenizer.ggml.tokens", ["$A", "a", "b", "ab"], r"first token is '\$A'"),
    ],
)
def test_tokens_that_are_none_are_refused(tmp_path, key, value, message):
    path = edited(
        tmp_path / "m.gguf", tokenizer__ggml__add_bos_token=True, **{key: value}
    )
    with pytest.raises(UserError, match=message):
        write_tokenizer(GGUFCheckpoint(path), tmp_path)


def test_what_changes_nothing_is_fine(tmp_path):
    path = edited(
        tmp_path / "m.gguf",
        llama__rope__dimension_count=4,
        llama__rope__scaling__attn_factor=1.0,
        llama__expert_count=0,
    )
    assert (
        read_config(GGUFCheckpoint(path))["rope_parameters"]["rope_type"] == "default"
    )


def test_queries_scaled_by_another_length_are_refused(tmp_path):
    path = edited(
        tmp_path / "m.gguf",
        llama__rope__scaling__original_context_length=4,
        llama__attention__temperature_scale=0.1,
        llama__attention__temperature_length=8,
    )
    with pytest.raises(UserError, match="temperature_length = 8; expected 4"):
        read_config(GGUFCheckpoint(path))


@pytest.mark.parametrize("key", ["scaling__factor", "scale_linear"])
def test_a_factor_without_a_type_is_linear(tmp_path, key):
    path = edited(tmp_path / "m.gguf", **{f"llama__rope__{key}": 4.0})
    assert read_config(GGUFCheckpoint(path))["rope_parameters"] == (
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    )


@pytest.mark.parametrize(
    "zeros",
    [
        {"rope__scaling__factor": 0.0},
        {"rope__scale_linear": 0.0},
        {"rope__scaling__factor": 0.0, "rope__scaling__type": "none"},
        # The newer name counts.
        {"rope__scaling__factor": 0.0, "rope__scale_linear": 4.0},
        # Of the type "none" no factor is read.
        {"rope__scaling__factor": 4.0, "rope__scaling__type": "none"},
        {"attention__sliding_window": 0},
    ],
)
def test_a_zero_is_none(tmp_path, zeros):
    """As llama.cpp has it, and ``check_config`` at a start."""
    zeros = {f"llama__{key}": value for key, value in zeros.items()}
    checkpoint = GGUFCheckpoint(edited(tmp_path / "m.gguf", **zeros))
    config = read_config(checkpoint)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert config["sliding_window"] is None
    check_config(checkpoint, AutoConfig.for_model(**config))


def test_rope_freqs_of_ones_change_nothing(tmp_path):
    checkpoint = GGUFCheckpoint(edited(tmp_path / "m.gguf", divisors=[1.0, 1.0]))
    assert checkpoint.rope_scaling(None, 4, 10000.0) is None
    linear = RopeScaling(rope_type="linear", factor=2.0)
    assert checkpoint.rope_scaling(linear, 4, 10000.0) is linear


def test_rope_freqs_are_honoured(tmp_path):
    path = edited(tmp_path / "m.gguf", divisors=[1.0, 8.0])
    prepare(path, tmp_path / "model")
    flags = {"weight_path": [path], "max_length": 32}
    pipeline_config = make_pipeline_config(tmp_path / "model", **flags)
    config = MistralConfig.initialize(pipeline_config)
    assert config.rope_scaling == RopeScaling(rope_type="divisors", divisors=(1.0, 8.0))
    hf = AutoConfig.from_pretrained(tmp_path / "model")
    weights = dict(GGUFCheckpoint(path).weights(hf, packed=False))
    assert len(weights) == 11  # none of RoPE among them


def llama3_divisors(head_dim, theta, rope):
    """As llama.cpp's conversion writes them (``generate_extra_tensors``)."""
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for dimension in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (dimension / head_dim)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def test_llama_3s_rope_freqs_beside_its_own_config(tmp_path):
    """Both say the same: the config of the model that the file was made of."""
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = AutoConfig.for_model("mistral", rope_parameters=rope)
    scaling = hf_rope.rope_scaling(config)
    of_model = llama3_divisors(64, 5e5, rope)
    assert len({*of_model} - {1.0, 32.0}) > 2
    checkpoint = GGUFCheckpoint(edited(tmp_path / "m.gguf", divisors=of_model))
    assert checkpoint.rope_scaling(scaling, 64, 5e5) is scaling
    other = [*of_model[:-1], 8.0]
    checkpoint = GGUFCheckpoint(edited(tmp_path / "other.gguf", divisors=other))
    with pytest.raises(UserError, match="would be 1 to 32"):
        checkpoint.rope_scaling(scaling, 64, 5e5)
    checkpoint = GGUFCheckpoint(edited(tmp_path / "m.gguf", divisors=of_model))
    with pytest.raises(UserError, match="with 1 to 32, and rope_type is 'llama3'"):
        checkpoint.rope_scaling(scaling, 64, 1e4)


@pytest.mark.parametrize(
    ("divisors", "metadata", "named"),
    [
        ([1.0], {}, r"of shape \[1\]; expected \[2\]"),
        ([1.0, 8.0, 8.0], {}, r"of shape \[3\]"),
        ([[1.0, 8.0]], {}, r"of shape \[1, 2\]"),
        ([1.0, 0.0], {}, r"with 0\.0; expected numbers"),
        ([1.0, -8.0], {}, r"with -8\.0"),
        ([1.0, math.nan], {}, "with nan"),
        ([1.0, math.inf], {}, "with inf"),
        ([1.0, 8.0], {"llama__rope__scale_linear": 4.0}, "rope_type is 'linear'"),
    ],
)
def test_other_rope_freqs_are_refused(tmp_path, divisors, metadata, named):
    path = edited(tmp_path / "m.gguf", divisors=divisors, **metadata)
    with pytest.raises(UserError, match=named) as error:
        prepare(path, tmp_path / "model")
    assert "rope_freqs.weight" in str(error.value)
