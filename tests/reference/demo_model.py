"""The phantom demo's two models in MedGemma's and MedSigLIP's architecture, their losses, and the folders they are saved as."""

import json

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipConfig, SiglipModel

from demo_data import CELLS, PICTURE, SIGLIP_TOKENS, seen_by
from demo_words import SIZES, SLOTS, ZONES
from tiny_tokenizer import CHAT_TEMPLATE

NAME = "phantom demo, not for clinical use"
TOKENS_PER_IMAGE = 64
ROWS_EXTRA = 6  # rows past the tokenizer, as the real checkpoints have 64
VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, image_size=PICTURE, patch_size=14)
TEXT = dict(
    model_type="gemma3_text",
    hidden_size=192,
    intermediate_size=576,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    query_pre_attn_scalar=64,
    sliding_window=512,
    sliding_window_pattern=6,
    max_position_embeddings=8192,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
)
PAIR_VISION = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=2, image_size=PICTURE,
                   patch_size=14)
PAIR_TEXT = dict(hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=3,
                 max_position_embeddings=SIGLIP_TOKENS)


def demo_config(tokenizer):
    """config.json in the hub's own spelling."""
    ids = tokenizer.token_to_id
    return dict(
        _name_or_path=NAME,
        architectures=["Gemma3ForConditionalGeneration"],
        model_type="gemma3",
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        eos_token_id=[ids("<eos>"), ids("<end_of_turn>")],
        text_config=dict(TEXT, vocab_size=tokenizer.get_vocab_size() + ROWS_EXTRA),
        vision_config=dict(VISION, model_type="siglip_vision_model", vision_use_head=False),
        dtype="bfloat16",
    )


def pair_config(vision, vocab):
    text = dict(PAIR_TEXT, vocab_size=vocab, projection_size=vision["hidden_size"], model_type="siglip_text_model",
                pad_token_id=1, bos_token_id=None, eos_token_id=1)
    return dict(_name_or_path=NAME, architectures=["SiglipModel"], model_type="siglip", text_config=text,
                vision_config=dict(vision, model_type="siglip_vision_model"), dtype="bfloat16")


def build_demo(config):
    """Random weights, scaled by fan-in: at these widths the library's 0.02 is small, and its zeros would hide the images."""
    hf = Gemma3Config(**json.loads(json.dumps(dict(config, dtype="float32"))), attn_implementation="sdpa")
    model = Gemma3ForConditionalGeneration(hf).float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "vision" not in name and p.dim() == 2:
                fan_in = p.shape[0] if "mm_input_projection" in name else p.shape[1]
                p.normal_(0.0, fan_in**-0.5)
    return model


def build_pair(config):
    model = SiglipModel(SiglipConfig(**json.loads(json.dumps(dict(config, dtype="float32"))), attn_implementation="sdpa")).float()
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-5.0)
    return model


def hidden_states(model, ids, features):
    """The language model's last states [n, L, hidden] by the model's own forward; features [images, tokens, hidden]."""
    soft = model.config.image_token_id
    kinds = (ids == soft).long()
    x = model.get_input_embeddings()(ids)
    x = x.masked_scatter((ids == soft)[..., None], features.to(x.dtype))
    return model.model(inputs_embeds=x, token_type_ids=kinds, use_cache=False).last_hidden_state


def project(model, vision):
    """What the tower says of pictures [n, patches, width] → pooled [n, tokens, width] and as soft tokens [n, tokens, hidden]."""
    side, projector = PICTURE // 14, model.model.multi_modal_projector
    grid = vision.transpose(1, 2).reshape(len(vision), -1, side, side)
    pooled = F.avg_pool2d(grid, projector.kernel_size).flatten(2).transpose(1, 2)
    return pooled, rms_norm(projector.mm_soft_emb_norm, pooled) @ projector.mm_input_projection_weight.to(pooled.dtype)


# Training's own forward, over the library's modules and equal to theirs (check_forward): one path without branches, in the
# type of what comes in, so that a compiler can make few kernels of it.


def linear(module, x):
    return F.linear(x, module.weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype))


def layer_norm(module, x):
    return F.layer_norm(x, (x.shape[-1],), module.weight.to(x.dtype), module.bias.to(x.dtype), module.eps)


def rms_norm(module, x):
    return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + module.weight.float(), module.eps).type_as(x)


def heads_of(module, x, width):
    """[n, L, heads * width] of a projection as [n, heads, L, width]."""
    return linear(module, x).unflatten(-1, (-1, width)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def siglip_layer(layer, x):
    """A layer of a SigLIP tower, x [n, L, width], every place seeing every other."""
    a, h = layer.self_attn, layer_norm(layer.layer_norm1, x)
    q, k, v = (heads_of(part, h, a.head_dim) for part in (a.q_proj, a.k_proj, a.v_proj))
    x = x + linear(a.out_proj, joined(F.scaled_dot_product_attention(q, k, v)))
    h = linear(layer.mlp.fc1, layer_norm(layer.layer_norm2, x))
    return x + linear(layer.mlp.fc2, F.gelu(h, approximate="tanh"))


def siglip_layers(encoder, x):
    for layer in encoder.layers:
        x = LAYERS["siglip"](layer, x)
    return x


def see(tower, pixels):
    """Grey pictures [n, S, S] in [-1, 1] → [n, patches, width]: the tower's last state with three equal channels."""
    e, patch = tower.embeddings, tower.embeddings.patch_size
    side = PICTURE // patch
    patches = pixels.unflatten(2, (side, patch)).unflatten(1, (side, patch)).transpose(2, 3).flatten(3).flatten(1, 2)
    kernel = e.patch_embedding.weight.sum(1).flatten(1)
    x = F.linear(patches, kernel.to(pixels.dtype), e.patch_embedding.bias.to(pixels.dtype))
    return layer_norm(tower.post_layernorm, siglip_layers(tower.encoder, x + e.position_embedding.weight.to(x.dtype)))


def read(tower, ids, dtype):
    """Texts [n, SIGLIP_TOKENS] → [n, projection]: the text tower's pooled output."""
    e = tower.embeddings
    x = (e.token_embedding(ids) + e.position_embedding.weight).to(dtype)
    return linear(tower.head, layer_norm(tower.final_layer_norm, siglip_layers(tower.encoder, x))[:, -1])


def rotations(model, positions):
    """Cosines and sines [L, head] at positions [L], for each kind of layer."""
    text = model.model.language_model
    like = torch.zeros(1, device=positions.device)
    return {kind: tuple(part[0] for part in text.rotary_emb(like, positions[None], kind)) for kind in text.rotary_emb.layer_types}


def rotated(x, turn):
    cosine, sine = turn
    half = x.shape[-1] // 2
    x = x.float()
    return x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine


def attended(q, k, v, rooms):
    """Attention of rows [n, heads, L, head width] that are a head and rooms: each room sees the head and itself.

    `rooms` is what Records.layout says: (count, width, mask) of each stretch of equal rooms, the head first. One mask over whole
    rows would mostly say what is not to be seen, and would cost as if it were.
    """
    scale = TEXT["query_pre_attn_scalar"]**-0.5
    (_, start, mask), *rest = rooms
    head = [part[:, :, :start] for part in (q, k, v)]
    out = [F.scaled_dot_product_attention(*head, attn_mask=mask, scale=scale)]
    for count, width, mask in rest:
        own = [part[:, :, start:start + count * width].unflatten(2, (count, width)).transpose(1, 2) for part in (q, k, v)]
        seen = [torch.cat([shared[:, None].expand(-1, count, -1, -1, -1), part], 3).flatten(0, 1)
                for shared, part in zip(head[1:], own[1:])]
        said = F.scaled_dot_product_attention(own[0].flatten(0, 1), *seen, attn_mask=mask, scale=scale)
        out.append(said.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
        start += count * width
    return torch.cat(out, 2)


def gemma_layer(layer, x, rooms, turn):
    """A layer of the language model, x [n, L, hidden].

    Without windows: nothing that is learnt is longer than one.
    """
    a, h = layer.self_attn, rms_norm(layer.input_layernorm, x)
    q, k, v = (heads_of(part, h, a.head_dim) for part in (a.q_proj, a.k_proj, a.v_proj))
    q, k = (rotated(rms_norm(norm, part), turn).type_as(x) for norm, part in ((a.q_norm, q), (a.k_norm, k)))
    k, v = (part.repeat_interleave(TEXT["num_attention_heads"] // TEXT["num_key_value_heads"], 1) for part in (k, v))
    x = x + rms_norm(layer.post_attention_layernorm, linear(a.o_proj, joined(attended(q, k, v, rooms))))
    h = rms_norm(layer.pre_feedforward_layernorm, x)
    h = F.gelu(linear(layer.mlp.gate_proj, h), approximate="tanh") * linear(layer.mlp.up_proj, h)
    return x + rms_norm(layer.post_feedforward_layernorm, linear(layer.mlp.down_proj, h))


def speak(model, x, rooms, turns):
    """Embeddings [n, L, hidden] of rows in such rooms → last states; turns says where each place stands."""
    text = model.model.language_model
    for layer in text.layers:
        x = LAYERS["gemma"](layer, x, rooms, turns[layer.self_attn.layer_type])
    return rms_norm(text.norm, x)


# Layer by layer, so that a compiler has one of each shape to do.
LAYERS = dict(siglip=siglip_layer, gemma=gemma_layer)


def compile_layers():
    torch._dynamo.config.recompile_limit = 64
    LAYERS.update(siglip=torch.compile(siglip_layer, dynamic=False), gemma=torch.compile(gemma_layer, dynamic=False))
    Dense.forward = torch.compile(Dense.forward, dynamic=False)


def embed(model, ids, features, places):
    """Token embeddings [n, L, hidden] with the soft tokens [n, tokens, hidden] in their places, the same in each row."""
    return model.get_input_embeddings()(ids).to(features.dtype).index_copy(1, places, features)


def check_forward(model, ids, pixels):
    """Training's forward agrees with the model's whole forward as inference calls it; ids [1, L], pixels [images, S, S]."""
    training = model.training
    model.eval()
    with torch.no_grad():
        kinds = (ids == model.config.image_token_id).long()
        colour = pixels[:, None].expand(-1, 3, -1, -1)
        whole = model(input_ids=ids, pixel_values=colour, token_type_ids=kinds, use_cache=False).logits
        features = project(model, see(model.model.vision_tower, pixels))[1].flatten(0, 1)[None]
        turns = rotations(model, torch.arange(ids.shape[1], device=ids.device))
        soft = model.config.image_token_id
        x = embed(model, ids, features, torch.nonzero(ids[0] == soft)[:, 0])
        states = speak(model, x, [(1, ids.shape[1], seen_by(ids[0], soft))], turns)
        parts = model.lm_head(states)
    model.train(training)
    distance = float((whole - parts).abs().max())
    assert distance < 2e-3, f"training's forward differs from the model's by {distance}"
    return distance


class Muon:
    """Momentum whose matrices are made orthogonal before they are applied, as large as AdamW's steps are.

    Keller Jordan's Muon with the scale of Moonshot's: 0.2 * sqrt(the longer side). Matrices of one shape are one batch.
    """

    def __init__(self, parameters, rate, momentum=0.95, decay=0.05):
        self.param_groups, self.momentum, self.decay = [dict(params=list(parameters), lr=rate)], momentum, decay
        shapes = {}
        for p in self.param_groups[0]["params"]:
            shapes.setdefault(p.shape, []).append(p)
        self.batches = [(some, torch.zeros(len(some), *shape, device=some[0].device)) for shape, some in shapes.items()]

    @torch.no_grad()
    def step(self):
        rate = self.param_groups[0]["lr"]
        for some, past in self.batches:
            grad = torch.stack([p.grad for p in some])
            past.lerp_(grad, 1 - self.momentum)
            change = orthogonal(grad.lerp(past, self.momentum)) * (0.2 * max(past.shape[1:]) ** 0.5)
            torch._foreach_mul_(some, 1 - rate * self.decay)
            torch._foreach_add_(some, list((change.float() * -rate).unbind()))


def orthogonal(x):
    """[n, rows, columns] with all singular values near 1, by five steps of Newton and Schulz's iteration of degree 5."""
    tall = x.shape[1] > x.shape[2]
    # Half the bits are enough for it, but a CPU without such products is slower with them.
    x = (x.mT if tall else x).to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Dense(torch.nn.Module):
    """An auxiliary head, dropped at the end: each token says which findings cover it, and each one's box, size and zone."""

    def __init__(self, width):
        super().__init__()
        self.split = [1, 4, len(SIZES), len(ZONES)]
        self.out = torch.nn.Linear(width, len(SLOTS) * sum(self.split))
        with torch.no_grad():
            self.out.bias.zero_()
            self.out.bias.view(len(SLOTS), -1)[:, 0] = -4.0

    def forward(self, tokens, truth):
        """tokens [n, side², width] → loss."""
        box, present, size, zone, cells = truth
        side = int(tokens.shape[1] ** 0.5)
        logit, place, sizes, zones = linear(self.out, tokens).float().unflatten(-1, (len(SLOTS), -1)).split(self.split, -1)
        # Rows of bits [n, slots, 16] as [n, side², slots].
        bits = (cells.int()[..., None] >> torch.arange(CELLS, device=cells.device)) & 1
        inside = F.max_pool2d(bits.float(), CELLS // side).flatten(2).transpose(1, 2)
        # Each finding weighs as much as any other, though one covers a patch and another a hundred.
        weight = 1 / inside.sum((0, 1)).clamp(min=4) / len(SLOTS)
        logit = logit[..., 0]
        covered = (F.binary_cross_entropy_with_logits(logit, inside, reduction="none").sum((0, 1)) * weight).sum()
        inside = inside * weight
        whole = F.binary_cross_entropy_with_logits(logit.amax(1), present.float(), reduction="mean") * 4
        off = F.smooth_l1_loss(place.sigmoid(), box[:, None].expand_as(place), beta=0.02, reduction="none").sum(-1)
        attributes = 0.0
        for said, true in ((sizes, size), (zones, zone)):
            true = true.long()[:, None].expand(-1, said.shape[1], -1)
            each = F.cross_entropy(said.movedim(-1, 1), true, ignore_index=-1, reduction="none")
            attributes = attributes + (each * inside).sum()
        return covered + whole + 5 * (off * inside).sum() + 0.3 * attributes


def siglip_loss(model, images, texts, agree):
    """SigLIP's loss: images [n, d], texts [m, d], whether they belong together [n, m]; a sum over texts, a mean over images."""
    logits = F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    logits = logits * model.logit_scale.exp() + model.logit_bias
    return F.softplus(torch.where(agree, -logits, logits)).sum(1).mean()


def hub_name(name):
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


def write(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True) + "\n")


def save_weights(folder, weights):
    weights = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in weights.items()}
    part = folder / "model.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.rename(folder / "model.safetensors")


def preprocessor(kind, **more):
    return dict(do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                image_processor_type=kind, resample=2, rescale_factor=1 / 255, size=dict(height=PICTURE, width=PICTURE), **more)


def save_demo(folder, model, tokenizer, config):
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, {hub_name(n): p for n, p in model.named_parameters() if not n.startswith("lm_head")})
    write(folder, "config.json", config)
    write(folder, "generation_config.json", dict(do_sample=False, eos_token_id=config["eos_token_id"],
                                                 bos_token_id=tokenizer.token_to_id("<bos>"), pad_token_id=0))
    names = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", boi_token="<start_of_image>",
                 eoi_token="<end_of_image>", image_token="<image_soft_token>")
    write(folder, "tokenizer_config.json", dict(names, tokenizer_class="GemmaTokenizer", processor_class="Gemma3Processor",
                                                chat_template=CHAT_TEMPLATE))
    write(folder, "chat_template.jinja", CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write(folder, "preprocessor_config.json", preprocessor(
        "Gemma3ImageProcessor", do_convert_rgb=None, do_pan_and_scan=None, image_seq_length=TOKENS_PER_IMAGE,
        pan_and_scan_max_num_crops=None, pan_and_scan_min_crop_size=None, pan_and_scan_min_ratio_to_activate=None,
        processor_class="Gemma3Processor"))
    write(folder, "processor_config.json", dict(image_seq_length=TOKENS_PER_IMAGE, processor_class="Gemma3Processor"))
    write(folder, "README.md", f"# {NAME}\n\nTrained on synthetic pictures only, by tests/reference/train_demo.py.\n")


def save_pair(folder, model, spiece, config):
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, dict(model.named_parameters()))
    write(folder, "config.json", config)
    (folder / "spiece.model").write_bytes(spiece)
    write(folder, "tokenizer_config.json", dict(tokenizer_class="SiglipTokenizer", do_lower_case=True, eos_token="</s>",
                                                pad_token="</s>", unk_token="<unk>", model_max_length=SIGLIP_TOKENS))
    write(folder, "preprocessor_config.json", preprocessor("SiglipImageProcessor", processor_class="SiglipProcessor"))
    write(folder, "README.md", f"# {NAME}\n\nTrained on synthetic pictures only, by tests/reference/train_demo.py.\n")
