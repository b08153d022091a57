"""Whole reports through `generate` of Hugging Face transformers: images encoded, prompts read with them, texts written, so
many side by side as there are slots; with more queued, one batch after the other.

    python torch_reports.py CHECKPOINT --dtype bf16 --threads 2
"""

import torch
import transformers
from samples import Samples, reports_parser

parser = reports_parser()
parser.add_argument("checkpoint")
parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
options = parser.parse_args()

FIRST_TOKEN = 100

torch.set_num_threads(options.threads)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
model = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    options.checkpoint, dtype=dtype, attn_implementation="sdpa"
).eval()
config = model.config
# Random weights: every text goes on until it is as long as it may be.
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
slots = min(options.slots, options.jobs)
image = [config.image_token_id] * config.mm_tokens_per_image
words = [FIRST_TOKEN + at for at in range(options.prompt - len(image))]
prompt = torch.tensor(words[: options.before] + image + words[options.before :])
side = config.vision_config.image_size


def generate(count):
    ids = prompt.repeat(count, 1)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=(ids == config.image_token_id).long(),
        pixel_values=torch.rand(count, 3, side, side).to(dtype),
        do_sample=False,
        max_new_tokens=options.tokens,
    )
    assert written.shape[1] == options.prompt + options.tokens, "a text has ended"


def write(jobs):
    for begun in range(0, jobs, slots):
        generate(min(slots, jobs - begun))


about = ", ".join(
    [
        f"transformers {transformers.__version__} generate, batches of {slots}",
        f"prompts of {options.prompt} tokens",
        f"sdpa, {torch.backends.cpu.get_cpu_capability()}",
    ]
)
samples = Samples(options, peer="PyTorch", version=f"torch {torch.__version__}", dtype=options.dtype, about=about)
with torch.inference_mode():
    samples.measure_reports(write)
