"""What a transformer is, as far as time, memory and traffic are concerned."""

from dataclasses import dataclass
from typing import Literal

from mist.errors import InputError

Dtype = Literal["fp32", "bf16", "fp8", "int8", "int4", "fp4"]
BYTES_PER_ELEMENT: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": (4 + (16 + 4) / 128) / 8,  # AWQ: 128 weights share a 16-bit scale and a 4-bit zero, arXiv:2306.00978
    "fp4": (4 + 8 / 32) / 8,  # MXFP4: 32 weights share an 8-bit scale, OCP Microscaling Formats v1.0
}


@dataclass(frozen=True)
class ModelSpec:
    """A decoder (or encoder): dense or mixture-of-experts, GQA or MLA attention, in all layers or some.

    Field names follow the Hugging Face ``config.json`` where it has one: ``hidden`` is ``hidden_size``,
    ``heads`` ``num_attention_heads``, ``kv_heads`` ``num_key_value_heads``, ``intermediate``
    ``intermediate_size`` (of a dense MLP), ``vocabulary`` ``vocab_size``. ``parameters`` is the published
    count; what the simulator uses is derived from the shape, and a law compares the two. An ``encoder`` has no
    language head: embedding models, rerankers, reward models, also those with a decoder's backbone.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # MLP width of a dense layer
    vocabulary: int
    context: int  # tokens the model was published for
    parameters: float  # published count, all of them
    kind: Literal["decoder", "encoder"] = "decoder"
    gated_mlp: bool = True  # gate, up and down matrices rather than up and down
    tied_embeddings: bool = False
    attention_bias: bool = False
    positions: int = 0  # learned position embeddings; 0 is rotary or none
    pooler: bool = False  # a hidden x hidden layer over the first token
    # mixture of experts
    experts: int = 0  # routed experts in a sparse layer; 0 is a dense model
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0  # of width expert_intermediate, run for every token
    dense_layers: int = 0  # layers of a sparse model whose MLP is dense (width ``intermediate``)
    # multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)
    kv_latent: int = 0  # kv_lora_rank; 0 is no MLA
    q_latent: int = 0  # q_lora_rank; 0 projects queries directly
    rope_head_dim: int = 0  # qk_rope_head_dim, cached once per token beside the latent
    value_head_dim: int = 0  # v_head_dim, where it differs from head_dim
    # sliding window
    window: int = 0  # tokens a windowed layer attends to; 0 is full attention everywhere
    window_layers: int = 0  # layers with that window
    gated_attention: bool = False  # attn_output_gate: every query is projected with a gate of its size
    # linear attention (gated DeltaNet, arXiv:2412.06464): a state of constant size in place of a cache
    linear_layers: int = 0  # layers with it
    linear_key_heads: int = 0  # linear_num_key_heads
    linear_value_heads: int = 0  # linear_num_value_heads; each has a state of key size x value size
    linear_key_dim: int = 0  # linear_key_head_dim
    linear_value_dim: int = 0  # linear_value_head_dim
    linear_convolution: int = 0  # linear_conv_kernel_dim: tokens that the convolution before it sees
    # bytes
    weight_dtype: Dtype = "bf16"
    expert_dtype: Dtype | None = None  # routed experts, where stored narrower than the rest; None is weight_dtype
    kv_dtype: Dtype = "bf16"
    state_dtype: Dtype = "fp32"  # of linear attention

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "context"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.heads % self.kv_heads:
            raise InputError("kv_heads", self.kv_heads, f"must divide the {self.heads} query heads")
        if self.experts_per_token > self.experts:
            raise InputError("experts_per_token", self.experts_per_token, f"there are {self.experts} experts")
        if self.experts and not (self.experts_per_token and self.expert_intermediate):
            raise InputError("experts", self.experts, "needs experts_per_token and expert_intermediate too")
        if self.window_layers > self.layers or self.dense_layers > self.layers:
            raise InputError("layers", self.layers, "fewer than its windowed or dense layers")
        self._check_linear()

    def _check_linear(self) -> None:
        if self.linear_layers + self.window_layers > self.layers:
            raise InputError(
                "linear_layers", self.linear_layers, f"more than the {self.layers} layers, with the windowed"
            )
        shape = ("linear_key_heads", "linear_value_heads", "linear_key_dim", "linear_value_dim", "linear_convolution")
        for field in shape:
            if getattr(self, field) < bool(self.linear_layers):
                raise InputError(field, getattr(self, field), "must be at least 1 with linear_layers")
        if self.linear_layers and self.linear_value_heads % self.linear_key_heads:
            why = f"must divide the {self.linear_value_heads} value heads"
            raise InputError("linear_key_heads", self.linear_key_heads, why)

    @property
    def attention_layers(self) -> int:
        """Layers that cache keys and values."""
        return self.layers - self.linear_layers

    @property
    def sparse_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.gated_mlp else 2

    @property
    def attention_parameters(self) -> float:
        """Weights of one attention layer's projections."""
        if not self.kv_latent:
            q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
            bias = q + 2 * kv if self.attention_bias else 0
            gate = q if self.gated_attention else 0
            return float(self.hidden * (q + gate + 2 * kv) + q * self.hidden + bias)
        value = self.value_head_dim or self.head_dim
        query_width = self.heads * (self.head_dim + self.rope_head_dim)
        queries = (self.hidden + query_width) * self.q_latent if self.q_latent else self.hidden * query_width
        latent = self.hidden * (self.kv_latent + self.rope_head_dim)
        expand = self.kv_latent * self.heads * (self.head_dim + value)
        return float(queries + latent + expand + self.heads * value * self.hidden)

    @property
    def linear_width(self) -> int:
        """Queries, keys and values of one token in a linear-attention layer: what is convolved."""
        return 2 * self.linear_key_heads * self.linear_key_dim + self.linear_value_heads * self.linear_value_dim

    @property
    def linear_parameters(self) -> float:
        """Weights of one linear-attention layer: projections, output gate, two gates a value head, convolution."""
        values = self.linear_value_heads * self.linear_value_dim
        projected = self.linear_width + values + 2 * self.linear_value_heads
        return float(self.hidden * (projected + values) + self.linear_convolution * self.linear_width)

    @property
    def mixer_parameters(self) -> float:
        """Weights of all layers before their MLPs: attention of either kind."""
        return self.attention_layers * self.attention_parameters + self.linear_layers * self.linear_parameters

    @property
    def expert_parameters(self) -> float:
        """Weights of one routed expert."""
        return float(self.mlp_matrices * self.hidden * self.expert_intermediate)

    @property
    def dense_mlp_parameters(self) -> float:
        return float(self.mlp_matrices * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> float:
        """One vocabulary matrix; an untied decoder has two."""
        return float(self.vocabulary * self.hidden)

    @property
    def routed_parameters(self) -> float:
        """Weights of all routed experts of all layers."""
        return self.sparse_layers * self.experts * self.expert_parameters

    @property
    def outer_parameters(self) -> float:
        """Weights outside the layers: embeddings, an untied language head, a pooler."""
        matrices = 1 if self.tied_embeddings or self.kind == "encoder" else 2
        pooler = self.hidden * self.hidden if self.pooler else 0
        return matrices * self.embedding_parameters + self.positions * self.hidden + pooler

    @property
    def counted_parameters(self) -> float:
        """All weights, counted from the shape; norms are left out (below 0.1 %)."""
        sparse = self.sparse_layers
        beside_routed = self.shared_experts * self.expert_parameters + self.hidden * self.experts
        return (
            self.mixer_parameters
            + (self.layers - sparse) * self.dense_mlp_parameters
            + sparse * beside_routed
            + self.routed_parameters
            + self.outer_parameters
        )

    @property
    def weight_bytes(self) -> float:
        """All weights in memory; embeddings and the head stay in 16 bits when the layers are quantised."""
        layer, expert = (BYTES_PER_ELEMENT[d] for d in (self.weight_dtype, self.expert_dtype or self.weight_dtype))
        inner = self.counted_parameters - self.routed_parameters - self.outer_parameters
        return inner * layer + self.routed_parameters * expert + self.outer_parameters * max(layer, 2.0)

    @property
    def kv_bytes_per_token_per_layer(self) -> float:
        width = self.kv_latent + self.rope_head_dim if self.kv_latent else 2 * self.kv_heads * self.head_dim
        return width * BYTES_PER_ELEMENT[self.kv_dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token over all layers that have one, on all devices together."""
        return self.attention_layers * self.kv_bytes_per_token_per_layer

    @property
    def state_bytes_per_layer(self) -> float:
        """What a linear-attention layer keeps of one sequence: its state, and the tokens that the convolution sees."""
        state = self.linear_value_heads * self.linear_key_dim * self.linear_value_dim
        seen = max(self.linear_convolution - 1, 0) * self.linear_width
        return state * BYTES_PER_ELEMENT[self.state_dtype] + seen * 2.0

    @property
    def state_bytes(self) -> float:
        """State of one sequence over all linear-attention layers, on all devices together."""
        return self.linear_layers * self.state_bytes_per_layer
