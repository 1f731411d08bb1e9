"""What PEFT's own ``merge_and_unload`` makes of adapters that it saved.

The committed adapters and goldens are made here:

    pip install torch==2.13.0 peft==0.21.2 accelerate
    python -m tests.lora_reference

A golden holds the tensors that the adapter changed, in the base's dtype.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from workbench.checkpoints import BASE, write_checkpoint

GOLDENS = Path(__file__).parent / "fixtures" / "lora"
TINY = BASE | {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
Q = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# LoraConfig's arguments, and the dtype of the base.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"target_modules": LINEARS, "layers_to_transform": [1]}, "float32"),
    "bfloat16": ({"target_modules": ["k_proj", "up_proj"], "r": 3}, "bfloat16"),
    "float16": (Q, "float16"),
    "rslora_patterns": (
        {
            "target_modules": r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj",
            "use_rslora": True,
            "rank_pattern": {"k_proj": 2, r"^model\.layers\.1\.self_attn\.q_proj": 3},
            "alpha_pattern": {r"layers\.0\..*\.v_proj": 5, "q_proj": 0.5},
        },
        "float32",
    ),
    "dora": (
        {"target_modules": ["k_proj", "down_proj"], "use_dora": True},
        "float32",
    ),
    "dora_bfloat16": (Q | {"use_dora": True}, "bfloat16"),
    "embedding": ({"target_modules": ["embed_tokens", "lm_head"]}, "float32"),
    "embedding_dora": (
        {"target_modules": ["embed_tokens"], "use_dora": True},
        "float32",
    ),
    "modules_to_save": (Q | {"modules_to_save": ["lm_head", "norm"]}, "float32"),
    "fan_in_fan_out": (Q | {"fan_in_fan_out": True}, "float32"),
}
SCALED = "dora", 0.5
"""A case, and what its scale is multiplied by for a golden of its own."""


def make_adapter(model: Any, arguments: dict[str, Any], folder: Path) -> None:
    """Saves an adapter that changes all it may, as training does."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 6, **arguments})
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            around = parameter.data if "magnitude" in name or "save" in name else 0
            parameter.data = around + 0.1 * torch.randn_like(parameter)
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = "tests/tiny"
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def main() -> None:
    """Makes the adapters and goldens anew."""
    import torch
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, (arguments, dtype) in CASES.items():
        folder = GOLDENS / name
        with tempfile.TemporaryDirectory() as base:
            write_checkpoint(Path(base), TINY, dtype=dtype)

            def load(base: str = base, dtype: str = dtype) -> Any:
                kind = getattr(torch, dtype)
                return AutoModelForCausalLM.from_pretrained(base, dtype=kind)

            make_adapter(load(), arguments, folder)
            before = load().state_dict()
            goldens = {"merged": 1.0}
            if name == SCALED[0]:
                goldens["scaled"] = SCALED[1]
            for golden, scale in goldens.items():
                model = PeftModel.from_pretrained(load(), folder)
                if scale != 1:
                    for module in model.modules():
                        if hasattr(module, "set_scale"):
                            module.set_scale("default", scale)
                merged = model.merge_and_unload().state_dict()
                changed = {
                    key: tensor.contiguous()
                    for key, tensor in merged.items()
                    if not torch.equal(tensor, before[key])
                }
                save_file(changed, folder / f"{golden}.safetensors")
        # The same bytes whatever PEFT's sets are ordered by.
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        for key, value in config.items():
            if isinstance(value, list):
                config[key] = sorted(value)
        path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
