"""A step's inputs, in the order in which graph and buffers agree."""

import dataclasses
from collections import OrderedDict

from tests.seams import find, has, says, seam, takes

RAGGED = "max.pipelines.lib.interfaces.batch_processor"
LLAMA = "max.pipelines.architectures.llama3.batch_processor:Llama3BatchProcessorBase"


@seam(
    "the order and dtypes of `ragged_batch_inputs` and `signal_inputs`",
    "ragged_batch_inputs signal_inputs",
    "`inputs.in_order` states the order once; its names are MAX's",
)
def batch_inputs():
    from max.dtype import DType
    from max.graph import DeviceRef

    cpu = DeviceRef.CPU()
    fields = (
        *("tokens", "row_offsets", "return_n_logits"),
        *("data_parallel_splits", "host_row_offsets"),
    )
    found = find(f"{RAGGED}:ragged_batch_inputs")(cpu, fields, data_parallel_degree=2)
    dtypes = [DType.int64, DType.uint32, DType.int64, DType.int64, DType.uint32]
    assert list(found) == list(fields)
    assert [each.dtype for each in found.values()] == dtypes
    assert int(found["data_parallel_splits"].shape[0]) == 3
    assert list(find(f"{RAGGED}:signal_inputs")([])) == ["signal"]


@seam(
    "`max.tree` keeps an `OrderedDict`'s order, and sorts a plain dict's keys",
    "tree",
    "`inputs.py` and `flat_graph.py` flatten and unflatten by it",
)
def order_of_trees():
    from max import tree

    ordered = OrderedDict(b=[1, 2], a=OrderedDict(z=3, y=()))
    leaves, structure = tree.flatten(ordered)
    assert leaves == tree.leaves(ordered) == [1, 2, 3]
    assert tree.unflatten(structure, leaves) == ordered
    assert tree.leaves({"b": 1, "a": 2}) == [2, 1]
    takes("max.tree:leaves", 1, "leaf")
    children, *_ = tree.flatten_one_level(ordered)
    assert children == ([1, 2], OrderedDict(z=3, y=()))
    assert tree.is_node(ordered)
    assert not tree.is_node(1)


@seam(
    "`KVCacheInputsPerDevice`: blocks, lengths, lookup table, the two maxima, then "
    "the page stride",
    "KVCacheInputsPerDevice PagedCacheValues page_stride",
    "the kernels that attend (Mojo) and `packed_attention.py` take four of them",
)
def cache_inputs():
    fields = dataclasses.fields(find("max.nn.kv_cache:KVCacheInputsPerDevice"))
    expected = ["kv_blocks", "cache_lengths", "lookup_table"]
    expected += ["max_prompt_length", "max_cache_length", "page_stride"]
    assert [field.name for field in fields][:6] == expected
    # The others are there for GPUs and other attentions only.
    assert all(field.default is None for field in fields[6:])


@seam(
    "a KV cache's blocks are `[pages, 2, layers, page_size, heads, head_dim]`, which "
    "MAX moves as whole pages only, in int8 without scales of its own; "
    "`rope_split_store_ragged` rounds to bfloat16 on a CPU",
    "kv_blocks",
    "`kernels/kv_cache.mojo` computes a key's place from it, and has an order of its "
    "own within a page; `kv_cache.py` makes heads wider for the scales of int8",
)
def cache_blocks():
    from max.dtype import DType

    caches = _two_caches()
    blocks = find("max.tree:leaves")(caches.get_symbolic_inputs())[0]
    assert [str(d) for d in blocks.shape][1:] == ["2", "3", "128", "2", "16"]
    assert blocks.dtype == DType.float32
    params = dataclasses.replace(caches.children["full"], dtype=DType.int8, head_dim=20)
    (inputs,) = params.get_symbolic_inputs()
    assert inputs.kv_blocks.dtype == DType.int8
    assert str(inputs.kv_blocks.shape[-1]) == "20"
    assert inputs.kv_scales is None


@seam(
    "`KVCacheConfig.to_params(window_size=, allow_kv_head_replication=)`, and "
    "`MultiKVCacheParams.from_params` keeps the order of its children",
    "MultiKVCacheParams to_params",
    "`kv_cache.py` counts on full before sliding: see MAX's gpt_oss and Gemma",
)
def two_caches():
    caches = _two_caches()
    assert list(caches.children) == ["full", "sliding"]
    assert [c.num_layers for c in caches.children.values()] == [3, 1]
    tree = caches.get_symbolic_inputs()
    one = caches.children["full"].get_symbolic_inputs()
    leaves = find("max.tree:leaves")
    assert len(leaves(tree)) == 2 * len(leaves(one))
    layers = [int(x.shape[2]) for x in leaves(tree) if len(x.shape) == 6]
    assert layers == [3, 1]


def _two_caches():
    from max.dtype import DType
    from max.graph import DeviceRef
    from max.nn.kv_cache import MultiKVCacheParams
    from max.pipelines.lib import KVCacheConfig

    def params(layers, window):
        return KVCacheConfig(kv_cache_page_size=128).to_params(
            dtype=DType.float32,
            n_kv_heads=2,
            head_dim=16,
            num_layers=layers,
            devices=[DeviceRef.CPU()],
            data_parallel_degree=1,
            allow_kv_head_replication=True,
            window_size=window,
        )

    both = {"full": params(3, None), "sliding": params(1, 128)}
    return MultiKVCacheParams.from_params(both)


@seam(
    "`Llama3BatchProcessorBase` stages a batch and calls `_make_inputs` with keywords",
    "_make_inputs _stage_ragged_token_inputs Llama3BatchProcessorBase",
    "see MAX's `Llama3BatchProcessor`, and `MistralInputs` for what the graph takes",
)
def make_inputs():
    names = "tokens input_row_offsets return_n_logits signal_buffers kv_cache_inputs"
    names += " data_parallel_splits"
    takes(f"{LLAMA}._make_inputs", 1, names)
    takes(f"{LLAMA}._stage_ragged_token_inputs", 2)
    says(f"{LLAMA}._stage_ragged_token_inputs", r"return .*, host_row_offsets\n")
    called = [rf"\b{name}=" for name in names.split()]
    says(f"{LLAMA}.prepare_initial_token_inputs", r"self\._make_inputs\(", *called)
    has(LLAMA, "process_outputs get_symbolic_inputs runtime")


@seam(
    "`_input_row_offsets_prealloc`: 0, 1, 2 ... for as many requests as a batch has",
    "_input_row_offsets_prealloc",
    "`prepare_next_token_inputs` can make its own row offsets instead",
)
def row_offsets():
    has(f"{RAGGED}:RaggedBatchProcessor", "_input_row_offsets_prealloc")
    says(f"{RAGGED}:RaggedBatchProcessor", r"np\.arange\(runtime\.max_batch_size \+ 1")
