"""Ministral 3's scaled queries: where they are computed at all."""

import pytest
from max import tree

from tests.harness import build
from workbench.checkpoints import CONFIGS, write_checkpoint
from workbench.runner import make_pipeline_config


# The config scales from position 16 on.
@pytest.mark.parametrize(("max_length", "is_scaled"), [(16, False), (17, True)])
def test_no_scale_where_it_would_be_one_everywhere(tmp_path, max_length, is_scaled):
    write_checkpoint(tmp_path, CONFIGS["ministral3"])
    graph = build(make_pipeline_config(tmp_path, max_length=max_length))
    traced = str(graph.trace(*tree.leaves(graph.input_tree())))
    assert ("floor" in traced) == is_scaled
