"""From a finalized config and its weights to the module that MAX compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from max.graph.weights import WeightData
from max.pipelines.lib.graph_specs import GraphSpec

from .data_parallel import DataParallelMistral, replica_weights
from .graph_config import GraphConfig
from .mistral import Mistral


def build_graph(
    config: GraphConfig, weights: dict[str, WeightData]
) -> Mistral | DataParallelMistral:
    """Returns the decoder with its weights bound, strictly.

    Args:
        config: From :meth:`GraphConfig.finalize`.
        weights: The tensors by their names in the graph, from a weight adapter.
    """
    graph: Mistral | DataParallelMistral
    if config.data_parallel_degree > 1:
        graph = DataParallelMistral(config)
        weights = replica_weights(weights, config.data_parallel_degree)
    else:
        graph = Mistral(config)
    graph.load_state_dict(weights, weight_alignment=1)
    return graph


def graph_spec(
    graph: Mistral | DataParallelMistral, name: str, bind: Callable[[Any], Any]
) -> GraphSpec:
    """Returns what MAX compiles.

    Args:
        graph: From :func:`build_graph`.
        name: What MAX's log calls it.
        bind: The pipeline model's ``_bind_graph_inputs``.
    """
    return GraphSpec(
        graph,
        name,
        bind(graph.input_tree()),
        weights=graph.state_dict(auto_initialize=False),
    )
