"""The checkpoints of the matrix: small, and uncomfortable wherever a shortcut would pass unnoticed.

In all of them heads * head_dim differs from hidden, the query scalar from head_dim, and the number of layers is no
multiple of six. Between them: 1, 2 and 4 key-value heads, windows of 8 and of 1024, images longer and shorter than the
window, pooling by 1 and by 2, rope factor 8 and none, and every spelling of config.json and of tensor names.
"""

from matrix_weights import scale_of

# Names of the text tower, the vision tower and the projector.
SCHEMES = {
    "hub": ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
    "memory": ("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
    "newest": ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
    "text": ("model.", None, None),
}

CHECKPOINTS = {
    "window_8_kv_1": dict(
        scheme="hub", spelling="hub", tokens_per_image=4, pictures=5,
        text=dict(hidden_size=40, intermediate_size=72, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1,
                  head_dim=16, query_pre_attn_scalar=25, sliding_window=8, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
        vision=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=56),
    ),
    "window_8_kv_2": dict(
        scheme="memory", spelling="hub", tokens_per_image=9, pictures=3,
        text=dict(hidden_size=54, intermediate_size=96, num_hidden_layers=13, num_attention_heads=6, num_key_value_heads=2,
                  head_dim=12, query_pre_attn_scalar=9, sliding_window=8, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
        vision=dict(hidden_size=36, intermediate_size=60, num_hidden_layers=3, num_attention_heads=3, image_size=84),
    ),
    "window_8_kv_4": dict(
        scheme="newest", spelling="newest", tokens_per_image=16, pictures=3,
        text=dict(hidden_size=48, intermediate_size=80, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=4,
                  head_dim=20, query_pre_attn_scalar=32, sliding_window=8, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
        vision=dict(hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=5, image_size=56),
    ),
    "window_1024": dict(
        scheme="hub", spelling="hub", tokens_per_image=16, pictures=2,
        text=dict(hidden_size=40, intermediate_size=64, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=16, query_pre_attn_scalar=20, sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
        vision=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=112),
    ),
    "text_only": dict(
        scheme="text", spelling="newest",
        text=dict(hidden_size=42, intermediate_size=72, num_hidden_layers=8, num_attention_heads=3, num_key_value_heads=1,
                  head_dim=20, query_pre_attn_scalar=28, sliding_window=8),
    ),
}


def spread(name, shape, hidden):
    """(centre, standard deviation) of a tensor, by its name after the scheme's prefix and by its shape.

    Layers outweigh the embedding in the residual stream, and the last norm gives logits a deviation above 3.
    """
    last = name.rsplit(".", 1)[-1]
    if "vision." in name:
        if "norm" in name:
            return (1.0 if last == "weight" else 0.0), 0.2
        if last == "bias":
            return 0.0, 0.1
        if "position_embedding" in name:
            return 0.0, 0.5
    if name == "text.norm.weight":
        return 3.5 / (0.2 * hidden**0.5) - 1, 0.15
    if "q_norm" in name or "k_norm" in name:
        return 0.15, 0.2
    if "post_" in name:
        return 2.5, 0.3
    if "norm" in name:
        return 0.2, 0.2
    if "embed_tokens" in name:
        return 0.0, 0.2
    if "mm_input_projection" in name:
        return 0.0, 3.0 / shape[0] ** 0.5
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return 0.0, 1.3 / fan_in**0.5


def scheme_name(scheme, name):
    """A parameter's name of transformers in memory as (its name in the scheme, its name whatever the scheme)."""
    text, vision, projector = SCHEMES[scheme]
    places = [
        ("model.language_model.", text, "text."),
        ("model.vision_tower.vision_model.", vision, "vision."),
        ("model.vision_tower.", vision, "vision."),
        ("model.multi_modal_projector.", projector, "projector."),
        ("model.", text, "text."),
    ]
    for prefix, other, plain in places:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return other + rest, plain + rest
    raise SystemExit(f"{name} belongs to no part")


def recipe(model, scheme, hidden):
    """[name, shape, centre, scale] of every tensor, in order of names."""
    out = []
    for name, parameter in model.named_parameters():
        if name.startswith("lm_head"):
            continue
        stored, plain = scheme_name(scheme, name)
        centre, deviation = spread(plain, parameter.shape, hidden)
        out.append([stored, list(parameter.shape), float(round(centre, 4)), scale_of(deviation)])
    return sorted(out)
