"""The phantom demo's two models in MedGemma's and MedSigLIP's architecture, their losses, and the folders they are saved as."""

import json

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipConfig, SiglipModel
from transformers.models.gemma3 import modeling_gemma3

from demo_data import PICTURE, SIGLIP_TOKENS
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


def fast_norms():
    """Gemma's norm as one kernel where the library has six; the same function, as check_forward shows."""
    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps).type_as(x)
    modeling_gemma3.Gemma3RMSNorm.forward = forward


def hidden_states(model, ids, features):
    """The language model's last states [n, L, hidden] by the model's own forward; features [images, tokens, hidden]."""
    soft = model.config.image_token_id
    kinds = (ids == soft).long()
    x = model.get_input_embeddings()(ids)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    x = x.masked_scatter((ids == soft)[..., None], features.to(x.dtype))
    return model.model(inputs_embeds=x, token_type_ids=kinds, use_cache=False).last_hidden_state


def project(model, vision):
    """What the tower says of pictures [n, patches, width] → pooled [n, tokens, width] and as soft tokens [n, tokens, hidden]."""
    side, pool = PICTURE // 14, model.model.multi_modal_projector.kernel_size
    grid = vision.transpose(1, 2).reshape(len(vision), -1, side, side)
    pooled = F.avg_pool2d(grid.float(), pool).flatten(2).transpose(1, 2)
    return pooled, model.model.multi_modal_projector(vision)


def check_forward(model, ids, pixels):
    """The parts used in training agree with the model's whole forward as inference calls it."""
    training = model.training
    model.eval()
    with torch.no_grad():
        kinds = (ids == model.config.image_token_id).long()
        whole = model(input_ids=ids, pixel_values=pixels, token_type_ids=kinds, use_cache=False).logits
        _, features = project(model, model.model.vision_tower(pixel_values=pixels).last_hidden_state)
        parts = model.lm_head(hidden_states(model, ids, features))
    model.train(training)
    distance = float((whole - parts).abs().max())
    assert distance < 1e-3, f"training's forward differs from the model's by {distance}"
    return distance


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
        box, present, size, zone = truth
        side = int(tokens.shape[1] ** 0.5)
        logit, place, sizes, zones = self.out(tokens).float().unflatten(-1, (len(SLOTS), -1)).split(self.split, -1)
        edges = torch.arange(side, device=box.device) / side
        rows = (box[..., 0, None] < edges + 1 / side) & (box[..., 2, None] > edges)
        columns = (box[..., 1, None] < edges + 1 / side) & (box[..., 3, None] > edges)
        inside = (rows[..., :, None] & columns[..., None, :]).flatten(2).transpose(1, 2) & present[:, None]
        inside = inside.float()
        count = inside.sum().clamp(min=1)
        logit = logit[..., 0]
        covered = F.binary_cross_entropy_with_logits(logit, inside, reduction="sum") / count
        whole = F.binary_cross_entropy_with_logits(logit.amax(1), present.float(), reduction="mean") * 4
        off = F.smooth_l1_loss(place.sigmoid(), box[:, None].expand_as(place), beta=0.02, reduction="none").sum(-1)
        attributes = 0.0
        for said, true in ((sizes, size), (zones, zone)):
            true = true.long()[:, None].expand(-1, said.shape[1], -1)
            each = F.cross_entropy(said.movedim(-1, 1), true, ignore_index=-1, reduction="none")
            attributes = attributes + (each * inside).sum() / count
        return covered + whole + 5 * (off * inside).sum() / count + 0.3 * attributes


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
