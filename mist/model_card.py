"""Any Hugging Face ``config.json`` as the fields of a ModelSpec."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mist.build import build
from mist.errors import InputError
from mist.model import ModelSpec

Card = Mapping[str, Any]

# transformers' class names, without their endings; what each adds to the shape all of them share
_DECODERS = (
    "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe", "GptOss", "DeepseekV2", "DeepseekV3", "Gemma2",
    "Gemma3", "Phi3", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe",
)  # fmt: skip
_ENCODERS = ("Bert", "XLMRoberta")
_DECODER_HEADS = ("ForCausalLM", "ForConditionalGeneration")  # all others have no language head
_HEADS = (*_DECODER_HEADS, "ForSequenceClassification", "ForMaskedLM", "ForTokenClassification", "Model")
_BIASED = ("Qwen2", "GptOss")  # their classes add biases to the projections, whatever the card says
_HYBRID = ("Qwen3Next", "Qwen3_5", "Qwen3_5Moe")  # gated DeltaNet in most layers, gated attention in the others
_TIED = ("Gemma2", "Gemma3")  # unless the card says otherwise
_SPARSE_ONLY = "moe_intermediate_size"  # where every MLP is of experts
_STATES = {"float32": "fp32", "bfloat16": "bf16"}  # of linear attention
_DEFAULTS: dict[str, Card] = {  # what a card may leave to its class: transformers, Gemma3TextConfig
    "Gemma3": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    }
}


def read(path: str | Path) -> dict[str, Any]:
    """The fields of the ModelSpec that ``path`` describes, as plain data.

    The name is the directory's, or the file's if it is not called config.json; the parameter count, which a card
    does not hold, is counted from the shape. Weights have the dtype of the card's quantization, or 16 bits. Raises
    InputError for a file that cannot be read, an architecture that is not known, and a field that is missing.
    """
    file = Path(path).expanduser()
    card = _card(file)
    architecture = _architecture(card, str(path))
    if isinstance(card.get("text_config"), Mapping):  # Gemma 3 with its vision tower: the language model alone
        card = {**card, **card["text_config"]}
    card = {**_DEFAULTS.get(architecture.family, {}), **card}
    fields = _shape(card, architecture.family, str(path)) | _attention(card, architecture.family, str(path))
    fields |= _experts(card, architecture.family, str(path)) | _dtypes(card)
    fields |= _linear(card, str(path)) if architecture.family in _HYBRID else {}
    if architecture.encoder:
        fields["kind"] = "encoder"
    fields["name"] = (file.resolve().parent.name if file.name == "config.json" else file.stem).lower()
    known = {key: value for key, value in fields.items() if value is not None}
    spec = build(ModelSpec, {**known, "parameters": 0.0})
    return {**known, "parameters": spec.counted_parameters}


class _Architecture(NamedTuple):
    family: str
    encoder: bool


def _card(file: Path) -> Card:
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError("model", file, "is a directory" if file.is_dir() else "no such file") from None
    except ValueError as error:
        raise InputError("model", file, f"not valid JSON: {error}") from None
    if not isinstance(card, dict):
        raise InputError("model", file, "not a config.json: a JSON object is needed")
    return card


def _architecture(card: Card, path: str) -> _Architecture:
    known = sorted((*_DECODERS, *_ENCODERS))
    names = card.get("architectures")
    if not isinstance(names, list) or not names:
        raise InputError("model", path, "its config.json has no architectures", known)
    for head in _HEADS:
        family = str(names[0]).removesuffix(head)
        if family != names[0] and family in known:
            return _Architecture(family, family in _ENCODERS or head not in _DECODER_HEADS)
    raise InputError("model", path, f"its architecture, {names[0]}, is not known", known)


def _need(card: Card, key: str, path: str) -> int:
    value = card.get(key)
    if type(value) is not int or value < 0:
        why = f"its config.json needs a whole number in {key}" + (f", not {value!r}" if value is not None else "")
        raise InputError("model", path, why)
    return value


def _shape(card: Card, family: str, path: str) -> dict[str, Any]:
    encoder = family in _ENCODERS
    positions = _need(card, "max_position_embeddings", path)
    context = positions - 2 if family == "XLMRoberta" else positions  # its first two are padding
    tied = card.get("tie_word_embeddings", family in _TIED)
    return {
        "layers": _need(card, "num_hidden_layers", path),
        "hidden": _need(card, "hidden_size", path),
        "heads": _need(card, "num_attention_heads", path),
        "intermediate": _need(card, "intermediate_size" if "intermediate_size" in card else _SPARSE_ONLY, path),
        "vocabulary": _need(card, "vocab_size", path),
        "context": context,
        "tied_embeddings": bool(tied) and not encoder,
        "gated_mlp": not encoder,
        "positions": positions if encoder else 0,
        "pooler": encoder,
    }


def _attention(card: Card, family: str, path: str) -> dict[str, Any]:
    heads = _need(card, "num_attention_heads", path)
    fields: dict[str, Any] = {
        "kv_heads": card.get("num_key_value_heads") or heads,
        "head_dim": card.get("head_dim") or _need(card, "hidden_size", path) // max(heads, 1),
        "attention_bias": bool(card.get("attention_bias", False)) or family in (*_BIASED, *_ENCODERS),
    }
    if family.startswith("Deepseek"):
        fields |= {
            "kv_heads": heads,
            "head_dim": _need(card, "qk_nope_head_dim", path),
            "rope_head_dim": _need(card, "qk_rope_head_dim", path),
            "value_head_dim": _need(card, "v_head_dim", path),
            "kv_latent": _need(card, "kv_lora_rank", path),
            "q_latent": card.get("q_lora_rank") or 0,
        }
    return fields | _window(card, family, path)


def _linear(card: Card, path: str) -> dict[str, Any]:
    """Which layers keep a state: as ``layer_types`` lists them, else all but every ``full_attention_interval``-th."""
    layers, types = _need(card, "num_hidden_layers", path), card.get("layer_types")
    if isinstance(types, list):
        linear = sum(kind == "linear_attention" for kind in types)
    else:
        linear = layers - layers // _need(card, "full_attention_interval", path)
    state = card.get("mamba_ssm_dtype", "float32")
    if state not in _STATES:
        raise InputError("model", path, f"its mamba_ssm_dtype, {state}, is not known", list(_STATES))
    return {
        "linear_layers": linear,
        "linear_key_heads": _need(card, "linear_num_key_heads", path),
        "linear_value_heads": _need(card, "linear_num_value_heads", path),
        "linear_key_dim": _need(card, "linear_key_head_dim", path),
        "linear_value_dim": _need(card, "linear_value_head_dim", path),
        "linear_convolution": _need(card, "linear_conv_kernel_dim", path),
        "gated_attention": bool(card.get("attn_output_gate", True)),
        "state_dtype": _STATES[state],
    }


def _window(card: Card, family: str, path: str) -> dict[str, Any]:
    """Which layers slide: as ``layer_types`` lists them, else as the architecture alternates them."""
    window, layers = card.get("sliding_window"), _need(card, "num_hidden_layers", path)
    if not window or not card.get("use_sliding_window", True) or window >= _need(card, "max_position_embeddings", path):
        return {}
    types = card.get("layer_types")
    if isinstance(types, list):
        sliding = sum(kind == "sliding_attention" for kind in types)
    else:
        sliding = _ALTERNATION[family](layers, card) if family in _ALTERNATION else layers
    return {"window": window, "window_layers": sliding} if sliding else {}


_ALTERNATION: dict[str, Callable[[int, Card], int]] = {  # windowed layers where the card does not list them
    "Gemma2": lambda n, _: n - n // 2,
    "GptOss": lambda n, _: n - n // 2,
    "Gemma3": lambda n, card: n - n // (card.get("sliding_window_pattern") or 6),
    "Qwen2": lambda n, card: max(n - (card.get("max_window_layers") or 0), 0),  # the layers above that number
    "Qwen3": lambda n, card: max(n - (card.get("max_window_layers") or 0), 0),
    "Qwen3Moe": lambda n, card: max(n - (card.get("max_window_layers") or 0), 0),
}


def _experts(card: Card, family: str, path: str) -> dict[str, Any]:
    if family in ("Mixtral", "GptOss"):
        width = _need(card, "intermediate_size", path)
        return {
            "experts": _need(card, "num_local_experts", path),
            "experts_per_token": _need(card, "num_experts_per_tok", path),
            "expert_intermediate": width,
        }
    if family in ("Qwen3Moe", "Qwen3Next", "Qwen3_5Moe"):
        width = _need(card, "moe_intermediate_size", path)
        return {
            "experts": _need(card, "num_experts", path),
            "experts_per_token": _need(card, "num_experts_per_tok", path),
            "expert_intermediate": width,
            "shared_experts": (card.get("shared_expert_intermediate_size") or 0) // max(width, 1),
            "dense_layers": len(card.get("mlp_only_layers") or ()),
        }
    if family.startswith("Deepseek"):
        return {
            "experts": _need(card, "n_routed_experts", path),
            "experts_per_token": _need(card, "num_experts_per_tok", path),
            "expert_intermediate": _need(card, "moe_intermediate_size", path),
            "shared_experts": card.get("n_shared_experts") or 0,
            "dense_layers": _need(card, "first_k_dense_replace", path),
        }
    return {}


def _dtypes(card: Card) -> dict[str, Any]:
    """Weights as ``quantization_config`` stores them; MXFP4 (gpt-oss) stores the experts so, the rest in 16 bits.

    Unquantised ones take 16 bits, those of a float32 checkpoint too (vLLM engine arguments, --dtype auto).
    """
    quantization = card.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return {"weight_dtype": "bf16"}
    method = str(quantization.get("quant_method"))
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    if method == "mxfp4":
        return {"weight_dtype": "bf16", "expert_dtype": "fp4"}
    if method in ("awq", "gptq") and bits in (4, 8):
        return {"weight_dtype": "int4" if bits == 4 else "int8"}
    if method in ("fp8", "fbgemm_fp8"):
        return {"weight_dtype": "fp8"}
    known = ("awq", "fbgemm_fp8", "fp8", "gptq", "mxfp4")
    raise InputError("model", method, "this quantization of a config.json is not known; set weight_dtype", known)
